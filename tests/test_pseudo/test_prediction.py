"""Class probabilities of whole images: views, mixed precision, sizes, sliding windows."""

import copy

import pytest
import torch
from mmengine.registry import DefaultScope
from mmseg.structures import SegDataSample
from tiny_models import tiny_segmentor

from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo.prediction import check_tta, predict_probabilities


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = build_segmentor(tiny_segmentor())
    model.decode_head.conv_seg.weight.data.mul_(100)
    return model.eval()


def batch(*sizes, ori_shape=None):
    gen = torch.Generator().manual_seed(1)
    images = [torch.randint(256, (3, *s), generator=gen).to(torch.uint8) for s in sizes]
    samples = [
        SegDataSample(metainfo=dict(img_shape=s, pad_shape=s, ori_shape=ori_shape or s))
        for s in sizes
    ]
    return dict(inputs=images, data_samples=samples)


def predict(model, data, **kwargs):
    with torch.no_grad():
        return predict_probabilities(model, data, **kwargs)


def test_probabilities_are_those_of_the_network_at_the_original_size(model):
    data = batch((24, 32), ori_shape=(48, 64))
    (prob,) = predict(model, data)
    with torch.no_grad():
        prepared = model.data_preprocessor(copy.deepcopy(data), False)
        expected = model.predict(prepared['inputs'], prepared['data_samples'])[0]
    assert prob.shape == (4, 48, 64)
    torch.testing.assert_close(prob, expected.seg_logits.data.softmax(dim=0))


def test_flipping_averages_both_orientations(model):
    data = batch((24, 32))
    (plain,) = predict(model, data)
    mirrored = dict(data, inputs=[data['inputs'][0].flip(-1)])
    (other,) = predict(model, mirrored)
    (both,) = predict(model, data, tta=dict(flip=True))
    torch.testing.assert_close(both, (plain + other.flip(-1)) / 2)
    (again,) = predict(model, mirrored, tta=dict(flip=True))
    torch.testing.assert_close(again, both.flip(-1))
    assert 'flip' not in data['data_samples'][0].metainfo, 'the batch was changed'


def test_scales_are_averaged_at_the_original_size(model):
    data = batch((24, 32))
    single = [predict(model, data, tta=dict(scales=[s]))[0] for s in (0.5, 1.0, 1.5)]
    (mean,) = predict(model, data, tta=dict(scales=[0.5, 1.0, 1.5]))
    torch.testing.assert_close(mean, sum(single) / 3)
    torch.testing.assert_close(single[1], predict(model, data)[0])
    assert not torch.allclose(single[0], single[1])
    torch.testing.assert_close(mean.sum(dim=0), torch.ones(24, 32))


def test_images_of_different_sizes_are_predicted_one_by_one(model):
    data = batch((24, 32), (40, 16))
    got = predict(model, data, tta=dict(flip=True))
    for index in range(2):
        single = {key: [values[index]] for key, values in data.items()}
        assert torch.equal(got[index], predict(model, single, tta=dict(flip=True))[0])


def test_sliding_windows(model):
    cfg = tiny_segmentor()
    cfg['test_cfg'] = dict(mode='slide', crop_size=(16, 16), stride=(8, 8))
    sliding = build_segmentor(cfg).eval()
    sliding.load_state_dict(model.state_dict())
    (whole,), (slid,) = predict(model, batch((24, 40))), predict(sliding, batch((24, 40)))
    assert slid.shape == whole.shape and not torch.allclose(slid, whole)
    (flipped,) = predict(sliding, batch((24, 40)), tta=dict(flip=True, scales=[1.0, 1.25]))
    torch.testing.assert_close(flipped.sum(dim=0), torch.ones(24, 40))


def test_half_precision_is_near_and_comes_out_in_float32(model):
    kinds = []
    handle = model.decode_head.conv_seg.register_forward_hook(
        lambda _, __, out: kinds.append(out.dtype)
    )
    (full,), (half,) = (predict(model, batch((24, 32)), amp=amp) for amp in (False, True))
    handle.remove()
    assert kinds == [torch.float32, torch.bfloat16]
    assert half.dtype == torch.float32
    torch.testing.assert_close(half.sum(dim=0), torch.ones(24, 32))
    assert (half - full).abs().mean() < 0.05


@pytest.mark.parametrize('tta', [dict(flips=True), dict(scales=[]), dict(scales=[0.5, 0])])
def test_settings_that_mean_nothing_are_refused(tta):
    with pytest.raises(ValueError, match=r'labeling\.tta'):
        check_tta(tta, 'mutual.labeling.tta')
    check_tta(None, 'tta')
