"""Tiny configs and data shared by the tests."""

import copy

import torch
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

NUM_CLASSES = 4


def tiny_segmentor(num_classes=NUM_CLASSES, auxiliary=False, dropout=0.1):
    """Config of an EncoderDecoder with batch norm and dropout that trains in milliseconds."""
    head = dict(
        type='FCNHead',
        in_channels=16,
        in_index=1,
        channels=8,
        num_convs=1,
        concat_input=False,
        dropout_ratio=dropout,
        num_classes=num_classes,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    )
    cfg = dict(
        type='EncoderDecoder',
        data_preprocessor=dict(type='SegDataPreProcessor', size=(32, 32), **NORMALIZE),
        backbone=dict(
            type='ResNet',
            depth=18,
            base_channels=8,
            stem_channels=8,
            num_stages=2,
            strides=(1, 2),
            dilations=(1, 1),
            out_indices=(0, 1),
            norm_cfg=dict(type='BN'),
        ),
        decode_head=head,
        train_cfg=dict(),
        test_cfg=dict(mode='whole'),
    )
    if auxiliary:
        aux = copy.deepcopy(head)
        aux.update(in_channels=8, in_index=0)
        aux['loss_decode'] = dict(aux['loss_decode'], loss_weight=0.4)
        cfg['auxiliary_head'] = aux
    return cfg


def tiny_segformer(num_classes=NUM_CLASSES):
    """Config of an EncoderDecoder with a transformer, and nothing in common with the other one."""
    cfg = tiny_segmentor(num_classes)
    cfg['backbone'] = dict(
        type='MixVisionTransformer',
        embed_dims=8,
        num_stages=4,
        num_layers=[1, 1, 1, 1],
        num_heads=[1, 1, 1, 1],
        sr_ratios=[2, 1, 1, 1],
        mlp_ratio=2,
    )
    cfg['decode_head'] = dict(
        type='SegformerHead',
        in_channels=[8, 8, 8, 8],
        in_index=[0, 1, 2, 3],
        channels=8,
        num_classes=num_classes,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', avg_non_ignore=True),
    )
    return cfg


NORMALIZE = dict(
    mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True, seg_pad_val=255
)


def labeled_samples(labels):
    """Data samples with ground truth from a (N, H, W) label tensor."""
    samples = []
    for label in labels:
        meta = dict(img_shape=tuple(label.shape), ori_shape=tuple(label.shape))
        sample = SegDataSample(metainfo=meta)
        sample.gt_sem_seg = PixelData(data=label[None].long())
        samples.append(sample)
    return samples


def unlabeled_samples(valid):
    """Data samples without ground truth whose padding is that of a (N, H, W) mask."""
    samples = []
    for mask in valid:
        height, width = int(mask.any(1).sum()), int(mask.any(0).sum())
        padding = (0, mask.shape[1] - width, 0, mask.shape[0] - height)
        samples.append(SegDataSample(metainfo=dict(padding_size=padding)))
    return samples


def semi_batch(num_labeled=2, num_unlabeled=3, size=32, num_classes=NUM_CLASSES):
    """Inputs and data samples of an online method, as the preprocessor makes them."""
    rgb = torch.rand(num_labeled + num_unlabeled, 3, size, size)
    mean, std = (torch.tensor(NORMALIZE[key]).view(3, 1, 1) for key in ('mean', 'std'))
    sup, weak = ((rgb * 255 - mean) / std).split([num_labeled, num_unlabeled])
    valid = torch.ones(num_unlabeled, size, size, dtype=torch.bool)
    labels = torch.randint(0, num_classes, (num_labeled, size, size))
    inputs = dict(sup=sup, unsup_weak=weak, unsup_rgb=rgb[num_labeled:], unsup_valid=valid)
    return inputs, dict(sup=labeled_samples(labels), unsup=unlabeled_samples(valid))
