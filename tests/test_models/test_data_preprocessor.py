import copy

import pytest
import torch
from mmengine.structures import PixelData
from mmseg.models.data_preprocessor import SegDataPreProcessor
from mmseg.structures import SegDataSample

from mmdmt.models.data_preprocessor import SemiDataPreprocessor
from mmdmt.registry import MODELS

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True)
BASE = dict(NORM, size=(16, 20), pad_val=0, seg_pad_val=255)
STRONG = dict(type='mmdmt.StrongAugment')
IDENTITY = dict(type='mmdmt.StrongAugment', jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)


class Spy(torch.nn.Module):
    """An augmentation that changes nothing and notes what it got."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, images, valid):
        self.seen.append((images, valid))
        return images


def sample(height, width, labeled, pseudo=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)
    data_sample = SegDataSample(metainfo=dict(img_path=f'{seed}.jpg'))
    if labeled or pseudo:
        label = torch.randint(0, 5, (1, height, width), generator=generator)
        data_sample.gt_sem_seg = PixelData(data=label)
    if pseudo:
        confidence = torch.randint(
            1, 256, (1, height, width), dtype=torch.uint8, generator=generator
        )
        data_sample.pseudo_confidence = PixelData(data=confidence)
        data_sample.set_metainfo(dict(is_pseudo=True))
    return image, data_sample


def batch(*samples):
    images, data_samples = zip(*(sample(*item, seed=i) for i, item in enumerate(samples)))
    return dict(inputs=list(images), data_samples=list(data_samples))


MIXED = ((16, 20, True), (12, 20, True), (16, 20, False), (10, 14, False), (16, 18, False))


def run(preprocessor, data, training=True, seed=0):
    torch.manual_seed(seed)
    return preprocessor(copy.deepcopy(data), training)


def test_a_mixed_batch_is_split_and_padded():
    data = batch(*MIXED)
    out = run(SemiDataPreprocessor(strong=STRONG, **BASE), data)
    expected = run(SegDataPreProcessor(**BASE), data)
    inputs, samples = out['inputs'], out['data_samples']
    assert set(inputs) == {'sup', 'unsup_weak', 'unsup_strong', 'unsup_valid'}
    assert torch.equal(inputs['sup'], expected['inputs'][:2])
    assert torch.equal(inputs['unsup_weak'], expected['inputs'][2:])
    assert inputs['unsup_strong'].shape == (3, 3, 16, 20)
    assert inputs['unsup_strong'].dtype == torch.float32
    assert not torch.equal(inputs['unsup_strong'], inputs['unsup_weak'])
    assert [s.img_path for s in samples['sup']] == ['0.jpg', '1.jpg']
    assert [s.img_path for s in samples['unsup']] == ['2.jpg', '3.jpg', '4.jpg']
    for got, want in zip(samples['sup'], expected['data_samples']):
        assert torch.equal(got.gt_sem_seg.data, want.gt_sem_seg.data)
    assert (samples['sup'][1].gt_sem_seg.data[:, 12:] == 255).all()
    assert samples['unsup'][1].img_shape == (10, 14)


def test_order_within_each_kind_is_kept_when_kinds_alternate():
    data = batch((16, 20, False), (16, 20, True), (16, 20, False), (16, 20, True))
    out = run(SemiDataPreprocessor(strong=STRONG, **BASE), data)
    samples = out['data_samples']
    assert [s.img_path for s in samples['sup']] == ['1.jpg', '3.jpg']
    assert [s.img_path for s in samples['unsup']] == ['0.jpg', '2.jpg']
    expected = run(SegDataPreProcessor(**BASE), data)['inputs']
    assert torch.equal(out['inputs']['sup'], expected[[1, 3]])
    assert torch.equal(out['inputs']['unsup_weak'], expected[[0, 2]])


def test_valid_is_false_on_padding_only():
    valid = run(SemiDataPreprocessor(strong=STRONG, **BASE), batch(*MIXED))['inputs']['unsup_valid']
    assert valid.dtype == torch.bool and valid.shape == (3, 16, 20)
    assert valid[0].all()
    expected = torch.zeros(16, 20, dtype=torch.bool)
    expected[:10, :14] = True
    assert torch.equal(valid[1], expected)


@pytest.mark.parametrize('channels', ['bgr_to_rgb', 'rgb_to_bgr', 'neither'])
@pytest.mark.parametrize('normalized', [True, False])
def test_without_augmentation_strong_equals_weak_bit_by_bit(channels, normalized):
    base = {k: v for k, v in BASE.items() if k not in ('bgr_to_rgb', 'mean', 'std')}
    if normalized:
        base.update(mean=NORM['mean'], std=NORM['std'])
    if channels != 'neither':
        base[channels] = True
    out = run(SemiDataPreprocessor(strong=IDENTITY, **base), batch(*MIXED))['inputs']
    assert torch.equal(out['unsup_strong'], out['unsup_weak'])


@pytest.mark.parametrize('channels', ['bgr_to_rgb', 'rgb_to_bgr', 'neither'])
def test_augmentation_sees_rgb_in_the_unit_range(channels):
    base = {k: v for k, v in BASE.items() if k != 'bgr_to_rgb'}
    if channels != 'neither':
        base[channels] = True
    data = batch((16, 20, False), (16, 20, False))
    spy = Spy()
    preprocessor = SemiDataPreprocessor(strong=spy, **base)
    out = run(preprocessor, data)['inputs']
    images, valid = spy.seen[0]
    raw = torch.stack(data['inputs']).float() / 255
    # Images are loaded as BGR unless the config says that it turns RGB into BGR.
    assert torch.equal(images, raw if channels == 'rgb_to_bgr' else raw.flip(1))
    assert valid is None, 'without padding there is nothing to look out for'
    torch.testing.assert_close(preprocessor.denormalize(out['unsup_weak']), images)
    torch.testing.assert_close(preprocessor.normalize(images), out['unsup_weak'])


def test_augmentation_is_told_of_padding():
    spy = Spy()
    inputs = run(SemiDataPreprocessor(strong=spy, **BASE), batch(*MIXED))['inputs']
    assert torch.equal(spy.seen[0][1], inputs['unsup_valid'])


def test_padding_of_the_strong_view_is_that_of_the_weak_view():
    out = run(SemiDataPreprocessor(strong=STRONG, **dict(BASE, pad_val=7)), batch(*MIXED))
    inputs = out['inputs']
    padding = ~inputs['unsup_valid'][:, None].expand_as(inputs['unsup_weak'])
    assert padding.any()
    assert (inputs['unsup_strong'][padding] == 7).all()
    assert torch.equal(inputs['unsup_strong'][padding], inputs['unsup_weak'][padding])


def test_several_strong_views_are_drawn_independently():
    out = run(SemiDataPreprocessor(strong=STRONG, num_strong=3, **BASE), batch(*MIXED))
    views = [out['inputs'][key] for key in ('unsup_strong', 'unsup_strong_1', 'unsup_strong_2')]
    assert 'unsup_strong_3' not in out['inputs']
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])


def test_without_strong_augmentation_the_strong_view_is_the_weak_one():
    inputs = run(SemiDataPreprocessor(**BASE), batch(*MIXED))['inputs']
    assert torch.equal(inputs['unsup_strong'], inputs['unsup_weak'])


def test_seed_decides():
    preprocessor = SemiDataPreprocessor(strong=STRONG, **BASE)
    data = batch(*MIXED)
    first, same, other = (run(preprocessor, data, seed=seed)['inputs'] for seed in (1, 1, 2))
    assert torch.equal(first['unsup_strong'], same['unsup_strong'])
    assert not torch.equal(first['unsup_strong'], other['unsup_strong'])


def test_labeled_only_and_unlabeled_only_batches():
    preprocessor = SemiDataPreprocessor(strong=STRONG, **BASE)
    out = run(preprocessor, batch((16, 20, True), (16, 20, True)))
    assert set(out['inputs']) == {'sup'} and set(out['data_samples']) == {'sup'}
    out = run(preprocessor, batch((16, 20, False)))
    assert set(out['inputs']) == {'unsup_weak', 'unsup_strong', 'unsup_valid'}
    assert set(out['data_samples']) == {'unsup'}


def test_size_divisor_pads_both_kinds_to_one_size():
    base = dict(NORM, size_divisor=8)
    data = batch((16, 20, True), (30, 17, False))
    inputs = run(SemiDataPreprocessor(strong=STRONG, **base), data)['inputs']
    assert inputs['sup'].shape[-2:] == inputs['unsup_strong'].shape[-2:] == (32, 24)
    assert inputs['unsup_valid'][0, :30, :17].all()
    assert inputs['unsup_valid'].sum() == 30 * 17


@pytest.mark.parametrize('strong', [None, STRONG])
def test_without_branches_it_is_the_plain_preprocessor(strong):
    data = batch((16, 20, False, True), (12, 18, True), (9, 20, False, True))
    out = run(SemiDataPreprocessor(strong=strong, branches=False, **BASE), data)
    expected = run(SegDataPreProcessor(**BASE), data)
    assert torch.equal(out['inputs'], expected['inputs'])
    for got, want in zip(out['data_samples'], expected['data_samples']):
        assert got.img_path == want.img_path
        assert torch.equal(got.gt_sem_seg.data, want.gt_sem_seg.data)


def test_pseudo_confidence_is_padded_with_zero():
    data = batch((16, 20, False, True), (12, 18, True), (9, 14, False, True))
    samples = run(SemiDataPreprocessor(branches=False, **BASE), data)['data_samples']
    assert 'pseudo_confidence' not in samples[1]
    confidence, label = samples[2].pseudo_confidence.data, samples[2].gt_sem_seg.data
    assert confidence.dtype == torch.uint8 and confidence.shape == (1, 16, 20)
    original = data['data_samples'][2].pseudo_confidence.data
    assert torch.equal(confidence[:, :9, :14], original)
    assert torch.equal(confidence == 0, label == 255)
    assert samples[0].pseudo_confidence.shape == (16, 20)
    assert samples[2].is_pseudo


@pytest.mark.parametrize('branches', [True, False])
@pytest.mark.parametrize('test_cfg', [None, dict(size_divisor=32)])
def test_testing_is_the_plain_preprocessor(branches, test_cfg):
    data = batch((15, 20, True), (15, 20, False))
    base = dict(BASE, test_cfg=test_cfg)
    ours = SemiDataPreprocessor(strong=STRONG, branches=branches, **base)
    out = run(ours, data, training=False)
    expected = run(SegDataPreProcessor(**base), data, training=False)
    assert torch.equal(out['inputs'], expected['inputs'])
    for got, want in zip(out['data_samples'], expected['data_samples']):
        assert got.metainfo == want.metainfo


def test_built_from_config_and_adds_nothing_to_a_checkpoint():
    cfg = dict(type='mmdmt.SemiDataPreprocessor', strong=STRONG, **BASE)
    before = copy.deepcopy(cfg)
    module = MODELS.build(cfg)
    assert isinstance(module, SemiDataPreprocessor) and not module.state_dict()
    assert cfg == before


@pytest.mark.parametrize(
    'arguments, named',
    [
        (dict(size=(4, 4), num_strong=0), 'num_strong'),
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
    expected = run(SemiDataPreprocessor(strong=STRONG, **BASE), data)['inputs']
    out = run(SemiDataPreprocessor(strong=STRONG, **BASE).cuda(), data)['inputs']
    for key, want in expected.items():
        assert out[key].is_cuda
        torch.testing.assert_close(out[key].cpu(), want, atol=1e-3, rtol=0)
