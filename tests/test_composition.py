"""Methods composed with configs that have never heard of them: mmseg's own."""

import itertools
import re

import pytest
import torch
from mmengine.config import Config
from shipped_configs import load
from shipped_configs import read as read_shipped
from stock_data import LABELED, STOCK, UNLABELED, make_ade, make_cityscapes, make_voc

from mmdmt.composition import compose_method, method_names
from mmdmt.config import resolve_config
from mmdmt.engine.runners import MutualTrainingRunner, SemiRunner

_numbers = itertools.count()
SMALL = dict(crop_size=(32, 32), image_size=(96, 48), max_iters=2)


def resnet(*heads, **decode_head):
    """A narrow ResNet18 for a head of a ResNet50."""
    backbone = dict(type='ResNet', depth=18, base_channels=8, stem_channels=8)
    model = dict(pretrained=None, backbone=backbone, decode_head=decode_head)
    return dict(model, auxiliary_head=dict(in_channels=32, channels=8))


def several(count, **head):
    """The same change of each of several heads."""
    return {str(index): head for index in range(count)}


VIT = dict(embed_dims=16, num_layers=4, num_heads=2, img_size=(32, 32))
# For each kind of network: a config of mmseg, and how it is made small.
NETWORKS = dict(
    fcn=('fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024', resnet(in_channels=64, channels=8)),
    pspnet=('pspnet/pspnet_r50-d8_4xb4-20k_voc12aug-512x512', resnet(in_channels=64, channels=8)),
    deeplabv3plus=(
        'deeplabv3plus/deeplabv3plus_r50-d8_4xb4-80k_ade20k-512x512',
        resnet(in_channels=64, channels=8, c1_in_channels=8, c1_channels=4),
    ),
    upernet=(
        'upernet/upernet_r50_4xb2-40k_cityscapes-512x1024',
        resnet(in_channels=[8, 16, 32, 64], channels=8),
    ),
    segformer=(
        'segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512',
        dict(
            backbone=dict(init_cfg=None, embed_dims=8, num_heads=[1, 1, 2, 2]),
            decode_head=dict(in_channels=[8, 8, 16, 16], channels=8),
        ),
    ),
    segmenter=(
        'segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512',
        dict(
            pretrained=None,
            backbone=VIT,
            decode_head=dict(in_channels=16, channels=16, embed_dims=16, num_heads=2),
            test_cfg=dict(mode='whole'),
        ),
    ),
    ocrnet=(
        'ocrnet/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024',
        dict(
            pretrained=None,
            backbone=dict(
                extra=dict(
                    stage1=dict(num_blocks=(1,), num_channels=(4,)),
                    stage2=dict(num_blocks=(1, 1), num_channels=(4, 4)),
                    stage3=dict(num_modules=1, num_blocks=(1, 1, 1), num_channels=(4, 4, 4)),
                    stage4=dict(num_modules=1, num_blocks=(1,) * 4, num_channels=(4,) * 4),
                )
            ),
            decode_head={
                '0': dict(in_channels=[4] * 4, channels=16),
                '1': dict(in_channels=[4] * 4, channels=8, ocr_channels=8),
            },
        ),
    ),
    bisenetv2=(
        'bisenetv2/bisenetv2_fcn_4xb4-160k_cityscapes-1024x1024',
        dict(decode_head=dict(channels=8), auxiliary_head=several(4, channels=8)),
    ),
    setr=(
        'setr/setr_vit-l_naive_8xb1-80k_cityscapes-768x768',
        dict(
            backbone=dict(VIT, init_cfg=None, out_indices=(0, 1, 2, 3)),
            decode_head=dict(in_channels=16, channels=8),
            auxiliary_head=several(3, in_channels=16, channels=8),
            test_cfg=dict(mode='whole'),
        ),
    ),
    point_rend=(
        'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024',
        dict(
            pretrained=None,
            backbone=resnet()['backbone'],
            neck=dict(in_channels=[8, 16, 32, 64], out_channels=8),
            decode_head={
                '0': dict(in_channels=[8] * 4, channels=8),
                '1': dict(in_channels=[8], channels=8),
            },
        ),
    ),
    knet=(
        'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512',
        dict(
            resnet(
                kernel_update_head=several(
                    3,
                    in_channels=8,
                    out_channels=8,
                    num_heads=2,
                    feedforward_channels=8,
                    kernel_updator_cfg=dict(in_channels=4, feat_channels=4, out_channels=4),
                ),
                kernel_generate_head=dict(in_channels=64, channels=8),
            )
        ),
    ),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Data in the layouts of the data sets of mmseg's configs."""
    root = tmp_path_factory.mktemp('stock')
    return dict(
        cityscapes=make_cityscapes(root / 'cityscapes'),
        ade20k=make_ade(root / 'ade20k'),
        voc12aug=make_voc(root / 'voc'),
    )


def stock(name, work_dir):
    """A config of mmseg as a child config would make it small."""
    path, model = NETWORKS[name]
    cfg = Config.fromfile(STOCK / f'{path}.py')
    cfg.merge_from_dict(dict(model=model))
    cfg.merge_from_dict({'model.backbone.norm_cfg.type': 'BN'} if name == 'fcn' else {})
    cfg.update(work_dir=str(work_dir), experiment_name=f'composed_{next(_numbers)}')
    return cfg


def options_of(cfg, data, **options):
    """What a user sets for small images, and where they lie."""
    root = next(str(data[key]) for key in data if key in cfg.filename)
    loaders = {
        f'{loader}_dataloader.{key}': value
        for loader in ('train', 'val', 'test')
        for key, value in (('num_workers', 0), ('persistent_workers', False))
    }
    return dict(SMALL, **loaders, data_root=root, **options)


def compose(name, data, work_dir, method='mean_teacher', **arguments):
    """A small config of mmseg with a method."""
    cfg = stock(name, work_dir)
    options = options_of(cfg, data, **arguments.pop('options', {}))
    if not {'unlabeled', 'labeled'} & set(arguments):
        voc = 'voc12aug' in cfg.filename
        lists = options['data_root'] + '/ImageSets/Segmentation/train.txt'
        arguments.update(labeled=lists) if voc else arguments.update(
            unlabeled=options['data_root'] + '/more'
        )
    return compose_method(cfg, method, options=options, **arguments)


@pytest.mark.parametrize('name', NETWORKS)
def test_a_network_of_mmseg_trains_with_a_method(name, data, tmp_path):
    cfg = compose(name, data, tmp_path, options={'model.threshold': 0.0})
    assert cfg.model.type == 'mmdmt.MeanTeacher' and cfg.model.threshold == 0.0
    runner = SemiRunner.from_cfg(cfg)
    runner.train()
    student, teacher = runner.model.student, runner.model.teacher
    assert runner.iter == 2 and int(runner.model.iterations) == 2
    moved = [not torch.equal(a, b) for a, b in zip(student.parameters(), teacher.parameters())]
    assert any(moved)
    scalars = runner.message_hub.log_scalars
    assert torch.isfinite(torch.tensor(scalars['train/unsup_loss'].current()))
    assert 'val/teacher/mIoU' in scalars or 'teacher/mIoU' in str(list(scalars))
