"""No step of any method waits for the device, or mixes devices."""

import copy

import pytest
import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample
from shipped_configs import load, without_weights
from tiny_models import tiny_segformer, tiny_segmentor
from virtual_gpu import NoWaiting, VirtualGPU

import mmdmt  # noqa: F401
from mmdmt.models.supervised import train_without_waiting
from mmdmt.registry import MODELS

STRONG = dict(type='mmdmt.StrongAugment')
CUTMIX, CLASSMIX = dict(type='mmdmt.CutMix'), dict(type='mmdmt.ClassMix')
RANDOM = dict(type='mmdmt.RandomIntensityAugment')
PREVIOUS = dict(every=1, device='model')
ADAPTIVE_CUTMIX = dict(type='mmdmt.AdaptiveCutMix')
CONTRAST = dict(bank=dict(size=4, threshold=0.0), threshold=0.5, anchors_per_class=8)
RELEASED_CONTRAST = dict(CONTRAST, projection=dict(channels=5))
QUEUES = dict(anchors_per_class=8, queue_size=32, keys_per_class=8)
ADAPTIVE = dict(type='mmdmt.AdaptiveThreshold')
METHODS = {
    'mean_teacher': dict(type='MeanTeacher', strong=STRONG, mix=CUTMIX),
    'mean_teacher_classmix': dict(type='MeanTeacher', strong=STRONG, mix=CLASSMIX),
    'mean_teacher_adaptive': dict(type='MeanTeacher', threshold=ADAPTIVE),
    'fixmatch': dict(type='FixMatch', strong=STRONG, mix=CUTMIX),
    'fixmatch_teacher': dict(type='FixMatch', labeler='teacher', strong=STRONG),
    'unimatch': dict(type='UniMatch', strong=STRONG, mix=CUTMIX),
    'unimatch_v2': dict(type='UniMatchV2', strong=STRONG, mix=CUTMIX),
    'cps': dict(type='CPS'),
    'cps_cutmix': dict(type='CPS', mix=dict(CUTMIX, boxes='french', count=3)),
    'cutmix_seg': dict(type='CutMixSeg', strong=STRONG),
    'dual_teacher': dict(type='DualTeacher', shift_length=1, strong=STRONG),
    'dual_teacher_1': dict(type='DualTeacher', shift_length=1, num_teachers=1, strong=STRONG),
    'dual_teacher_released': dict(type='ReleasedDualTeacher', shift_length=1),
    'augseg': dict(type='AugSeg', strong=RANDOM, mix=ADAPTIVE_CUTMIX),
    'augseg_extra_weak': dict(type='AugSeg', extra_weak=True, mix=ADAPTIVE_CUTMIX),
    'prevmatch_fixmatch': dict(type='FixMatch', previous=PREVIOUS, mix=CUTMIX),
    'prevmatch': dict(type='UniMatch', previous=PREVIOUS, mix=CUTMIX),
    'prevmatch_v2': dict(type='UniMatchV2', previous=PREVIOUS, mix=CUTMIX),
    'u2pl': dict(type='U2PL', mix=CUTMIX, contrast=QUEUES),
    'u2pl_start': dict(type='U2PL', sup_only=0.02, contrast=QUEUES),
    'cross_teacher': dict(type='CrossTeacher', strong=STRONG, mix=CLASSMIX, contrast=CONTRAST),
    'cross_teacher_own_masks': dict(
        type='CrossTeacher',
        strong=STRONG,
        mix=CLASSMIX,
        shared_mix=False,
        contrast=RELEASED_CONTRAST,
    ),
}
NETWORKS = {
    'cnn': tiny_segmentor,
    'auxiliary': lambda: tiny_segmentor(auxiliary=True),
    'segformer': tiny_segformer,
}
# One leaf for each architecture; a deeper network has nothing else in it.
NETWORK_LEAVES = (
    'supervised/deeplabv2_r101_pascal_voc12-321x321',
    'supervised/deeplabv3plus_r18_camvid-360x480',
    'supervised/deeplabv3plus_mobilenetv2_msrc21-96x96',
    'supervised/deeplabv3plus_timm-mobilenetv3_folder-512x512',
    'supervised/segformer_mit-b0_ade20k-512x512',
    'supervised/upernet_mmpretrain-convnext-tiny_folder-512x512',
    'supervised/fcn_unet_toy-scenes-96x96',
    'supervised/ohem_deeplabv3plus_r50_cityscapes-801x801',
    'supervised/dpt_dinov2-small_pascal_voc12-518x518',
)
LOSSES = ('DynamicMutualLoss', 'DynamicSelfLoss', 'OnlinePseudoLoss')


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg))).train()


def batch(size=(32, 32), labeled=2, unlabeled=2, pseudo=0):
    """What a loader gives: uint8 images and samples, all on the CPU; the last one is smaller."""
    samples, images = [], []
    for index in range(labeled + pseudo + unlabeled):
        height = size[0] - 8 * (index == labeled + unlabeled - 1 and pseudo == 0)
        shape = (height, size[1])
        sample = SegDataSample(metainfo=dict(img_shape=shape, ori_shape=shape))
        if index < labeled + pseudo:
            sample.gt_sem_seg = PixelData(data=torch.zeros(1, *shape, dtype=torch.long))
        if labeled <= index < labeled + pseudo:
            sample.set_metainfo(dict(is_pseudo=True))
            sample.pseudo_confidence = PixelData(data=torch.ones(1, *shape))
        samples.append(sample)
        images.append(torch.zeros(3, *shape, dtype=torch.uint8))
    return dict(inputs=images, data_samples=samples)


def waits_of_steps(model, data, steps=1):
    """What the host waits for in steps of training but for backward passes."""
    gpu = VirtualGPU()
    gpu.move(model)
    with gpu:
        for _ in range(steps):
            inputs = model.data_preprocessor(copy.deepcopy(data), True)
            loss, _ = model.parse_losses(model(**inputs, mode='loss'))
            assert loss.device.type == 'cuda' and loss.requires_grad
            if hasattr(model, 'after_step'):
                model.after_step()
    return dict(gpu.waits)


def online_model(method, network='cnn'):
    kind = dict(METHODS[method])
    model = build(dict(kind, type='mmdmt.' + kind['type'], segmentor=NETWORKS[network]()))
    model.start_run(100, [1, 1])
    return model


@pytest.mark.parametrize('method', METHODS)
def test_no_step_of_an_online_method_waits(method):
    model = online_model(method)
    assert waits_of_steps(model, batch(), steps=3) == {}


@pytest.mark.parametrize('network', NETWORKS)
def test_no_network_of_a_method_waits(network):
    model = online_model('mean_teacher', network)
    assert waits_of_steps(model, batch()) == {}
    assert waits_of_steps(model, batch(unlabeled=0)) == {}, 'labeled images alone'


@pytest.mark.parametrize('method', METHODS)
def test_no_backward_pass_waits(method):
    model, data = online_model(method), batch()
    inputs = model.data_preprocessor(data, True)
    loss, _ = model.parse_losses(model(**inputs, mode='loss'))
    with NoWaiting():
        loss.backward()


@pytest.mark.parametrize('loss', LOSSES)
@pytest.mark.parametrize('network', NETWORKS)
def test_no_step_of_a_round_waits(network, loss):
    cfg = dict(NETWORKS[network](), type='mmdmt.PseudoLabelSegmentor')
    model = build(dict(cfg, pseudo_loss=dict(type=f'mmdmt.{loss}')))
    train_without_waiting(model)
    data = batch(labeled=2, pseudo=2, unlabeled=0)
    assert waits_of_steps(model, data) == {}
    assert waits_of_steps(model, batch(unlabeled=0)) == {}, 'ground truth alone'


@pytest.mark.parametrize('name', NETWORK_LEAVES)
def test_no_shipped_network_waits(name):
    """In plain supervised training, as its leaf in ``configs/supervised`` has it."""
    model = build(dict(without_weights(load(name).model)))
    train_without_waiting(model)
    assert waits_of_steps(model, batch((64, 64), unlabeled=0)) == {}


def test_plain_mmseg_waits():
    """So that the tests above would notice."""
    waits = waits_of_steps(build(tiny_segmentor()), batch(unlabeled=0))
    kinds = sorted(place.split(' at ')[0] for place in waits)
    assert kinds.count('_local_scalar_dense') == 1 and kinds.count('index by a mask') == 2
    assert kinds.count('copy') == 3, 'images, labels, and the order of channels'


def test_mixed_devices_are_refused():
    gpu = VirtualGPU()
    with gpu, pytest.raises(RuntimeError, match='device'):
        torch.zeros(3, device='cuda') + torch.zeros(3)
