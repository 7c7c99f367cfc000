"""Every base model trains on the CPU, offline, and has the shape of its file name."""

from pathlib import Path

import pytest
import shipped_configs
import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

import mmdmt  # noqa: F401
from mmdmt.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
NAMES = sorted(path.stem for path in (CONFIGS / '_base_' / 'models').glob('*.py'))
# What the documentation recommends without a network.
OFFLINE = {'model.backbone.init_cfg': None, 'model.pretrained': None}
OFFLINE_TIMM = {'model.backbone.pretrained': False}
TIMM = [name for name in NAMES if any(part in name for part in ('timm', 'dino', 'xception'))]
FROM_SCRATCH = ['fcn_unet-s2']


# These differ from a trained one in the number of their layers and channels alone.
DEEPER = (
    'deeplabv3plus_r101-d16',
    *(f'segformer_mit-b{size}' for size in (2, 3, 4, 5)),
    *(f'dpt_dinov{version}-{size}' for version in (2, 3) for size in ('base', 'large')),
)
# Parameters with five classes.
MILLIONS = {
    'deeplabv2_r101-d8': 42.9,
    'deeplabv3plus_mobilenetv2-d16': 2.82,
    'deeplabv3plus_r101-d16': 60.2,
    'deeplabv3plus_r18-d16': 12.3,
    'deeplabv3plus_r50-d16': 41.2,
    'deeplabv3plus_timm-mobilenetv3-d16': 4.4,
    'deeplabv3plus_xception65-d16': 55.6,
    # As published, less a unit of the head that is never run: 24.8, 97.5 and 335.6.
    'dpt_dinov2-base': 97.2,
    'dpt_dinov2-large': 334.4,
    'dpt_dinov2-small': 24.7,
    'dpt_dinov3-base': 96.3,
    'dpt_dinov3-large': 333.1,
    'dpt_dinov3-small': 24.3,
    'fcn_unet-s2': 1.62,
    'segformer_mit-b0': 3.72,
    'segformer_mit-b1': 13.7,
    'segformer_mit-b2': 24.7,
    'segformer_mit-b3': 44.6,
    'segformer_mit-b4': 61.4,
    'segformer_mit-b5': 82.0,
    'upernet_dinov3-convnext-tiny': 37.0,
    'upernet_mmpretrain-convnext-tiny': 37.0,
}


def load(name):
    cfg = Config.fromfile(CONFIGS / '_base_' / 'models' / f'{name}.py')
    cfg.merge_from_dict({**OFFLINE, **(OFFLINE_TIMM if name in TIMM else {})})
    return cfg


def build(name, **head):
    cfg = load(name)
    cfg.model.decode_head.update(head)
    if name == 'deeplabv2_r101-d8':
        cfg.model.backbone.depth = 50  # the same channels, half of the time
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = revert_sync_batchnorm(MODELS.build(cfg.model))
        model.init_weights()
    return model


def test_every_model_is_known():
    assert set(MILLIONS) == set(NAMES)


@pytest.mark.parametrize('name', NAMES)
def test_number_of_parameters(name):
    cfg = load(name).model
    cfg.decode_head.num_classes = 5
    millions = sum(p.numel() for p in shipped_configs.build(cfg).parameters()) / 1e6
    assert millions == pytest.approx(MILLIONS[name], rel=0.02)


@pytest.mark.parametrize('name', [name for name in NAMES if name not in DEEPER])
def test_training_step(name):
    model = build(name, num_classes=5)
    seen = []
    model.backbone.register_forward_hook(lambda backbone, args, maps: seen.extend(maps))
    size = 64 if name.endswith(('d8', 'd16')) else 96
    images = torch.randn(2, 3, size, size)
    labels = torch.randint(0, 5, (2, 1, size, size))
    labels[:, :, :8] = 255
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label)) for label in labels]
    model.train()
    losses = model(images, samples, mode='loss')
    loss, _ = model.parse_losses(losses)
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    without = [n for n, p in trained.items() if p.grad is None]
    assert without == []
    before = next(p for n, p in trained.items() if 'conv_seg' in n).detach().clone()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    after = next(p for n, p in trained.items() if 'conv_seg' in n)
    assert torch.isfinite(loss) and loss > 0
    assert not torch.equal(before, after)
    check_strides(name, [size / feature.shape[-1] for feature in seen])


def check_strides(name, strides):
    if '-d' in name:
        assert strides[-1] == int(name.rsplit('-d', 1)[1])
    if name.startswith('deeplabv3plus'):  # the low-level input of the head
        assert strides[0] == 4


def test_the_loss_does_not_count_ignored_pixels():
    model = build('deeplabv3plus_mobilenetv2-d16', num_classes=5, dropout_ratio=0)
    logits = torch.randn(1, 5, 8, 8)
    label = torch.randint(0, 5, (1, 1, 8, 8))
    label[..., 4:] = 255

    def loss_of(logits, label):
        sample = SegDataSample(gt_sem_seg=PixelData(data=label[0]))
        return model.decode_head.loss_by_feat(logits, [sample])['loss_ce']

    halved = loss_of(logits[..., :4], label[..., :4])
    torch.testing.assert_close(loss_of(logits, label), halved)


@pytest.mark.parametrize('name', NAMES)
def test_settings_that_all_share(name):
    cfg = load(name)
    assert cfg.model.get('auxiliary_head') is None
    assert cfg.model.decode_head.loss_decode.avg_non_ignore is True
    assert cfg.model.data_preprocessor.type == 'mmdmt.PaddingPreprocessor'
    assert cfg.model.data_preprocessor.padding == 'mean'
    assert cfg.model.data_preprocessor.seg_pad_val == 255
    assert cfg.model.data_preprocessor.bgr_to_rgb is True


@pytest.mark.parametrize('name', [name for name in NAMES if name not in TIMM])
def test_pretrained_weights_are_set_in_one_place(name):
    cfg = Config.fromfile(CONFIGS / '_base_' / 'models' / f'{name}.py')
    assert cfg.model.get('pretrained') is None
    if name in FROM_SCRATCH:
        assert 'init_cfg' not in cfg.model.backbone and 'init_cfg' not in cfg.model
        return
    assert cfg.model.backbone.init_cfg.type == 'Pretrained'
    checkpoint = cfg.model.backbone.init_cfg.checkpoint
    assert checkpoint.startswith(('torchvision://', 'open-mmlab://', 'mmcls://', 'https://'))
    for part in ('r18', 'r50', 'r101', 'mit-b0', 'mit-b1', 'mit-b2', 'mit-b3', 'mit-b4', 'mit-b5'):
        if f'_{part}' in name:
            assert part.replace('mit-', 'mit_').replace('r', 'resnet', part[0] == 'r') in checkpoint


def test_mobilenetv2_takes_weights_by_the_keys_of_mmseg(tmp_path):
    source = build('deeplabv3plus_mobilenetv2-d16')
    torch.save({'state_dict': source.backbone.state_dict()}, tmp_path / 'weights.pth')
    cfg = load('deeplabv3plus_mobilenetv2-d16')
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'))
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
        model.init_weights()
    for (key, value), loaded in zip(
        source.backbone.state_dict().items(), model.backbone.state_dict().values()
    ):
        assert torch.equal(value, loaded), key
