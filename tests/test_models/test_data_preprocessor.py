import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample

from mmdmt.models.data_preprocessor import PaddingPreprocessor, SemiDataPreprocessor
from mmdmt.registry import MODELS

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
BASE = dict(NORM, size=(16, 20), pad_val=0, seg_pad_val=255)


def sample(height, width, labeled, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    data_sample = SegDataSample(metainfo=dict(img_path=f'{seed}.jpg'))
    if labeled:
        label = torch.randint(0, 5, (1, height, width), generator=generator)
        data_sample.gt_sem_seg = PixelData(data=label)
    return image, data_sample


def batch(*samples):
    images, data_samples = zip(*(sample(*item, seed=i) for i, item in enumerate(samples)))
    return dict(inputs=list(images), data_samples=list(data_samples))


MIXED = ((16, 20, True), (12, 20, True), (16, 20, False), (10, 14, False), (16, 18, False))


def run(preprocessor, data, training=True):
    return preprocessor(copy.deepcopy(data), training)


def test_a_mixed_batch_is_split_normalized_and_padded_as_mmseg_does():
    data = batch(*MIXED)
    out = run(SemiDataPreprocessor(**BASE), data)
    expected = run(SegDataPreProcessor(**BASE), data)
    inputs, samples = out['inputs'], out['data_samples']
    assert set(inputs) == {'sup', 'unsup_weak', 'unsup_rgb', 'unsup_valid'}
    assert torch.equal(inputs['sup'], expected['inputs'][:2])
    assert torch.equal(inputs['unsup_weak'], expected['inputs'][2:])
    assert [s.img_path for s in samples['sup']] == ['0.jpg', '1.jpg']
    assert [s.img_path for s in samples['unsup']] == ['2.jpg', '3.jpg', '4.jpg']
    for got, want in zip(samples['sup'], expected['data_samples']):
        assert torch.equal(got.gt_sem_seg.data, want.gt_sem_seg.data)
    assert (samples['sup'][1].gt_sem_seg.data[:, 12:] == 255).all()
    assert samples['unsup'][1].img_shape == (10, 14)
    assert samples['unsup'][1].padding_size == (0, 6, 0, 6)


def test_the_padding_value_is_that_of_the_network():
    data = batch(*MIXED)
    inputs = run(SemiDataPreprocessor(**dict(BASE, pad_val=7)), data)['inputs']
    expected = run(SegDataPreProcessor(**dict(BASE, pad_val=7)), data)['inputs']
    assert torch.equal(torch.cat([inputs['sup'], inputs['unsup_weak']]), expected)


def test_an_unlabeled_sample_before_a_labeled_one_is_refused():
    data = batch((16, 20, False), (16, 20, True))
    with pytest.raises(ValueError, match='labeled source first'):
        run(SemiDataPreprocessor(**BASE), data)


def test_valid_is_false_on_padding_only():
    valid = run(SemiDataPreprocessor(**BASE), batch(*MIXED))['inputs']['unsup_valid']
    assert valid.dtype == torch.bool and valid.shape == (3, 16, 20)
    assert valid[0].all()
    expected = torch.zeros(16, 20, dtype=torch.bool)
    expected[:10, :14] = True
    assert torch.equal(valid[1], expected)


@pytest.mark.parametrize('channels', ['bgr_to_rgb', 'rgb_to_bgr', 'neither'])
@pytest.mark.parametrize('normalized', [True, False])
def test_rgb_is_in_the_unit_range_and_normalizes_to_the_weak_view(channels, normalized):
    base = {k: v for k, v in BASE.items() if k not in ('bgr_to_rgb', 'mean', 'std')}
    if normalized:
        base.update(mean=NORM['mean'], std=NORM['std'])
    if channels != 'neither':
        base[channels] = True
    data = batch((16, 20, False), (16, 20, False))
    preprocessor = SemiDataPreprocessor(**base)
    out = run(preprocessor, data)['inputs']
    raw = torch.stack(data['inputs']).float() / 255
    # Images are loaded as BGR unless the config turns RGB into BGR.
    assert torch.equal(out['unsup_rgb'], raw if channels == 'rgb_to_bgr' else raw.flip(1))
    torch.testing.assert_close(preprocessor.normalize(out['unsup_rgb']), out['unsup_weak'])
    plain = run(SegDataPreProcessor(**base), data)['inputs']
    assert torch.equal(out['unsup_weak'], plain)


def test_labeled_only_and_unlabeled_only_batches():
    preprocessor = SemiDataPreprocessor(**BASE)
    out = run(preprocessor, batch((16, 20, True), (16, 20, True)))
    assert set(out['inputs']) == {'sup'} and set(out['data_samples']) == {'sup'}
    out = run(preprocessor, batch((16, 20, False)))
    assert set(out['inputs']) == {'unsup_weak', 'unsup_rgb', 'unsup_valid'}
    assert set(out['data_samples']) == {'unsup'}


def test_size_divisor_pads_both_kinds_to_one_size():
    data = batch((16, 20, True), (30, 17, False))
    inputs = run(SemiDataPreprocessor(**NORM, size_divisor=8), data)['inputs']
    assert inputs['sup'].shape[-2:] == inputs['unsup_rgb'].shape[-2:] == (32, 24)
    assert inputs['unsup_valid'][0, :30, :17].all()
    assert inputs['unsup_valid'].sum() == 30 * 17


def test_a_batch_is_cast_stacked_and_normalized_once(monkeypatch):
    calls = []
    for name in ('cast_data', '_normalize'):
        original = getattr(SemiDataPreprocessor, name)

        def count(self, *args, original=original, name=name, **kwargs):
            calls.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(SemiDataPreprocessor, name, count)
    run(SemiDataPreprocessor(**BASE), batch(*MIXED))
    assert [name for name in calls if name != 'cast_data'] == ['_normalize']
    assert calls[0] == 'cast_data'


@pytest.mark.parametrize('test_cfg', [None, dict(size_divisor=32)])
def test_testing_is_the_plain_preprocessor(test_cfg):
    data = batch((15, 20, True), (15, 20, False))
    base = dict(BASE, test_cfg=test_cfg)
    out = run(SemiDataPreprocessor(**base), data, training=False)
    expected = run(SegDataPreProcessor(**base), data, training=False)
    assert torch.equal(out['inputs'], expected['inputs'])
    for got, want in zip(out['data_samples'], expected['data_samples']):
        assert got.metainfo == want.metainfo


def test_built_from_config_and_adds_nothing_to_a_checkpoint():
    cfg = dict(type='mmdmt.SemiDataPreprocessor', **BASE)
    before = copy.deepcopy(cfg)
    module = MODELS.build(cfg)
    assert isinstance(module, SemiDataPreprocessor) and not module.state_dict()
    assert cfg == before


@pytest.mark.parametrize(
    'arguments, named',
    [
        (dict(), 'size_divisor'),
        (dict(size=(4, 4), size_divisor=4), 'size_divisor'),
        (dict(size=(4, 4), batch_augments=[dict()]), 'batch_augments'),
    ],
)
def test_refuses_bad_arguments(arguments, named):
    with pytest.raises(ValueError, match=named):
        SemiDataPreprocessor(**NORM, **arguments)


def test_refuses_a_training_batch_without_samples():
    with pytest.raises(ValueError, match='data_samples'):
        SemiDataPreprocessor(**BASE)(dict(inputs=[torch.zeros(3, 4, 4)]), training=True)


@pytest.mark.gpu
def test_cuda_agrees_with_cpu():
    data = batch(*MIXED)
    expected = run(SemiDataPreprocessor(**BASE), data)['inputs']
    out = run(SemiDataPreprocessor(**BASE).cuda(), data)['inputs']
    for key, want in expected.items():
        assert out[key].is_cuda
        torch.testing.assert_close(out[key].cpu(), want, atol=1e-3, rtol=0)


# ---------------------------------------------------------------- the color of padding


def padded_before(data, size):
    """The batch with images that were padded with zeros as they were loaded."""
    data = copy.deepcopy(data)
    for index, image in enumerate(data['inputs']):
        missing = (0, size[1] - image.shape[2], 0, size[0] - image.shape[1])
        data['inputs'][index] = torch.nn.functional.pad(image, missing)
    return data


@pytest.mark.parametrize('kind', [PaddingPreprocessor, SemiDataPreprocessor])
@pytest.mark.parametrize('channels', ['bgr_to_rgb', 'rgb_to_bgr'])
@pytest.mark.parametrize('normalized', [True, False])
def test_black_is_padding_before_normalization(kind, channels, normalized):
    base = {k: v for k, v in BASE.items() if k != 'bgr_to_rgb' and (normalized or k == 'size')}
    base[channels] = True
    data = batch(*MIXED)
    expected = run(SegDataPreProcessor(**base), padded_before(data, (16, 20)))['inputs']
    found = run(kind(**base, padding='black'), data)['inputs']
    if kind is SemiDataPreprocessor:
        found = torch.cat([found['sup'], found['unsup_weak']])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert torch.equal(run(PaddingPreprocessor(**base), data)['inputs'][0], expected[0])


@pytest.mark.parametrize('kind', [PaddingPreprocessor, SemiDataPreprocessor])
def test_the_canvas_of_evaluation_has_the_color_of_training(kind):
    data = batch((12, 14, True))
    canvas = dict(NORM, size=(16, 20), test_cfg=dict(size=(30, 40)))
    black = run(kind(**canvas, padding='black'), data, training=False)
    whole = SegDataPreProcessor(**NORM)
    expected = run(whole, padded_before(data, (30, 40)), training=False)['inputs']
    torch.testing.assert_close(black['inputs'], expected, rtol=0, atol=1e-6)
    assert black['data_samples'][0].img_padding_size == (0, 26, 0, 18)  # is cut off by mmseg
    mean = run(kind(**canvas), data, training=False)['inputs']
    assert (mean[0, :, 12:] == 0).all() and (mean[0, :, :, 14:] == 0).all()


def test_labels_and_valid_pixels_are_the_same_for_every_color():
    data, base = batch(*MIXED), dict(BASE)
    mean, black = (run(SemiDataPreprocessor(**base, padding=p), data) for p in ('mean', 'black'))
    assert torch.equal(mean['inputs']['unsup_valid'], black['inputs']['unsup_valid'])
    assert torch.equal(mean['inputs']['unsup_rgb'], black['inputs']['unsup_rgb'])
    for one, other in zip(mean['data_samples']['sup'], black['data_samples']['sup']):
        assert torch.equal(one.gt_sem_seg.data, other.gt_sem_seg.data)
    with pytest.raises(ValueError, match=r'data_preprocessor\.padding.*white'):
        SemiDataPreprocessor(**base, padding='white')
