import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import DefaultScope
from mmseg.structures import SegDataSample
from tiny_models import NUM_CLASSES, tiny_segformer, tiny_segmentor

from mmdmt.models.methods.base import build_segmentor
from mmdmt.registry import MODELS

CAFFE = dict(mean=[104.008, 116.669, 122.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False)


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def members():
    """A CNN that takes RGB, a transformer that takes mean-subtracted BGR in windows."""
    other = tiny_segformer()
    other['data_preprocessor'] = dict(type='SegDataPreProcessor', **CAFFE)
    other['test_cfg'] = dict(mode='slide', crop_size=(16, 16), stride=(8, 8))
    return [tiny_segmentor(), other]


def build(configs=None):
    torch.manual_seed(0)
    ensemble = MODELS.build(
        dict(type='mmdmt.EnsembleSegmentor', members=copy.deepcopy(configs or members()))
    )
    for member in ensemble.members:
        member.decode_head.conv_seg.weight.data.mul_(100)
    return ensemble.eval()


def batch(size=(24, 32), ori_shape=(30, 40), count=2):
    gen = torch.Generator().manual_seed(1)
    images = torch.randint(256, (count, 3, *size), generator=gen).to(torch.uint8)
    meta = dict(img_shape=size, pad_shape=size, ori_shape=ori_shape)
    samples = [SegDataSample(metainfo=dict(meta)) for _ in range(count)]
    return dict(inputs=list(images), data_samples=samples)


def test_probabilities_are_the_mean_of_the_members_own_predictions():
    ensemble = build()
    results = ensemble.test_step(batch())
    expected = []
    for member in ensemble.members:
        predictions = member.test_step(batch())
        expected.append(torch.stack([p.seg_logits.data.softmax(0) for p in predictions]))
    got = torch.stack([result.seg_logits.data for result in results])
    assert got.shape == (2, NUM_CLASSES, 30, 40)
    mean = (expected[0] + expected[1]) / 2
    torch.testing.assert_close(got.softmax(dim=1), mean)
    label = torch.cat([result.pred_sem_seg.data for result in results])
    assert torch.equal(label, mean.argmax(dim=1))
    assert not torch.equal(label, expected[0].argmax(dim=1))


def test_a_certain_member_does_not_make_infinite_logits():
    ensemble = build()
    for member in ensemble.members:
        member.decode_head.conv_seg.weight.data.mul_(1e4)
    for result in ensemble.test_step(batch()):
        assert result.seg_logits.data.isfinite().all()


def test_images_without_samples_are_predicted_at_their_size():
    (logits,) = build().forward(batch(count=1)['inputs'], mode='tensor')
    assert logits.shape == (NUM_CLASSES, 24, 32)


def test_test_time_augmentation_wraps_it():
    cfg = dict(type='SegTTAModel', module=dict(type='mmdmt.EnsembleSegmentor', members=members()))
    model = MODELS.build(ConfigDict(cfg)).eval()
    plain, flipped = batch(count=1), batch(count=1)
    for sample in (plain['data_samples'][0], flipped['data_samples'][0]):
        sample.set_metainfo(dict(img_path='x.png'))
    flipped['inputs'] = [flipped['inputs'][0].flip(-1)]
    flipped['data_samples'][0].set_metainfo(dict(flip=True, flip_direction='horizontal'))
    data = {key: [plain[key], flipped[key]] for key in plain}
    (result,) = model.test_step(data)
    views = [
        model.module.test_step(view)[0].seg_logits.data.softmax(0) for view in (plain, flipped)
    ]
    assert torch.equal(result.pred_sem_seg.data.squeeze(0), (views[0] + views[1]).argmax(0))


def test_members_keep_their_weights_under_their_number():
    keys = list(build().state_dict())
    assert {key.split('.')[1] for key in keys} == {'0', '1'}
    plain = build_segmentor(members()[1]).state_dict()
    assert [k[len('members.1.') :] for k in keys if k.startswith('members.1.')] == list(plain)


def test_it_is_not_trained():
    ensemble = build()
    for call in (
        lambda: ensemble.loss([], []),
        lambda: ensemble.extract_feat(None),
        lambda: ensemble.encode_decode(None, []),
    ):
        with pytest.raises(NotImplementedError, match=r'members|predict'):
            call()


def test_members_of_different_classes_are_refused():
    with pytest.raises(ValueError, match=r'\[4, 3\]'):
        build([tiny_segmentor(), tiny_segmentor(num_classes=3)])
