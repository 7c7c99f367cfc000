"""Published values of UniMatch, UniMatch V2, CPS, CutMix-Seg and FixMatch in their configs."""

import pytest
from shipped_configs import load, read

from mmdmt.config import merge_options, resolve_config

#: By folder and method: network, data, images in a step, steps, optimizer, head, decay, threshold.
UNIMATCH = 'unimatch/unimatch'
V2 = 'unimatch_v2/unimatch-v2'
CPS, CPS_CUTMIX = 'cps/cps', 'cps/cps-cutmix'
KINDS = ('labeled', 'unlabeled')
VOC, CITY = 'pascal_voc12', 'cityscapes'
R50, R101 = 'deeplabv3plus_r50', 'deeplabv3plus_r101'
S, B, V3 = 'dpt_dinov2-small', 'dpt_dinov2-base', 'dpt_dinov3-small'
SGD = ('SGD', 0.001, 1e-4, 10.0)
SGD_CITY = ('SGD', 0.005, 1e-4, 1.0)
DINO = ('AdamW', 5e-6, 0.01, 40.0)
# Effective values: see the schedule of CPS.
SGD_CPS, SGD_CPS_CITY = ('SGD', 0.0025, 4e-4, 1.0), ('SGD', 0.0025, 8e-4, 1.0)
# Pixels kept of the images that one device had.
OHEM_2, OHEM_1 = (0.7, 200000, 2), (0.7, 50000, 1)
# 240 passes over 2603 images, 8 in a step; 60 over 9259, 17684 and 20 over 114590, 16 or 8, ...
PUBLISHED = {
    **{
        (UNIMATCH, net, VOC): (321, 16, 80 * 1157, SGD, 0.95, (0.5, 0.5), None)
        for net in (R50, R101)
    },
    **{
        (UNIMATCH, net, CITY): (801, 16, 240 * 325, SGD_CITY, 0.0, (0.5, 0.5), OHEM_2)
        for net in (R50, R101)
    },
    **{
        (V2, net, data): (crop, batch, steps, DINO, 0.95, (0.5, 0.5), loss)
        for net in (S, B)
        for data, crop, batch, steps, loss in (
            (VOC, 518, 32, 60 * 578, None),
            (CITY, 798, 16, 180 * 325, OHEM_2),
            ('ade20k', 518, 16, 60 * 2210, None),
            ('coco81', 518, 32, 20 * 7161, None),
        )
    },
    (V2, V3, VOC): (512, 32, 60 * 578, DINO, 0.95, (0.5, 0.5), None),
    ('fixmatch/fixmatch-v2', S, VOC): (518, 32, 60 * 578, DINO, 0.95, (0.5, 0.5), None),
    (CPS, R50, VOC): (512, 16, 39680, SGD_CPS, 0.0, (1.0, 1.5), None),
    (CPS, R50, CITY): (800, 16, 44640, SGD_CPS_CITY, 0.0, (1.0, 6.0), OHEM_1),
    **{
        (CPS_CUTMIX, net, VOC): (512, 16, 39680, SGD_CPS, 0.0, (1.0, 1.0), None)
        for net in (R50, R101)
    },
    **{
        (CPS_CUTMIX, net, CITY): (800, 16, 44640, SGD_CPS_CITY, 0.0, (1.0, 5.0), OHEM_1)
        for net in (R50, R101)
    },
    ('cutmix_seg/cutmix-seg', 'deeplabv2_r101', VOC): (
        321, 20, 40000, ('Adam', 3e-5, 0, 1.0), 0.97, (1.0, 1.0), None
    ),
}  # fmt: skip
METHODS = {
    UNIMATCH: dict(type='mmdmt.UniMatch', feature_dropout=0.5, feature_share=0.5),
    V2: dict(type='mmdmt.UniMatchV2', clean_share=0.5, ema=dict(momentum=0.996)),
    'fixmatch/fixmatch-v2': dict(type='mmdmt.FixMatch', labeler='teacher'),
    CPS: dict(type='mmdmt.CPS', predict_on='student_l'),
    CPS_CUTMIX: dict(type='mmdmt.CPS', predict_on='student_l'),
    'cutmix_seg/cutmix-seg': dict(
        type='mmdmt.CutMixSeg',
        per_pixel=False,
        ema=dict(momentum=0.99, warmup=False, mode='train', buffers='ema'),
    ),
}
UNIMATCH_BOX = dict(type='mmdmt.CutMix')
MIXES = {
    UNIMATCH: UNIMATCH_BOX,
    V2: dict(type='mmdmt.CutMix', partner='flip'),
    'fixmatch/fixmatch-v2': dict(type='mmdmt.CutMix', partner='flip'),
    CPS: None,
    CPS_CUTMIX: dict(type='mmdmt.CutMix', prob=1.0, boxes='french', count=3, area=(0.25, 0.5)),
    'cutmix_seg/cutmix-seg': dict(
        type='mmdmt.CutMix', prob=1.0, boxes='french', count=1, area=(0.5, 0.5)
    ),
}


@pytest.mark.parametrize('key', PUBLISHED, ids='-'.join)
def test_a_config_has_the_published_values(key):
    method, network, data = key
    crop, batch, steps, optimizer, threshold, weights, ohem = PUBLISHED[key]
    cfg = load(f'{method}_{network}_{data}-{crop}x{crop}')
    kind, rate, decay, head = optimizer
    found, mults = cfg.optim_wrapper.optimizer, cfg.optim_wrapper.get('paramwise_cfg', {})
    assert (found.type, found.lr, found.get('weight_decay', 0)) == (kind, rate, decay)
    heads = mults.get('custom_keys', {})
    assert (heads.get('head') or heads.get('decode_head') or dict(lr_mult=1.0))['lr_mult'] == head
    assert ('norm_decay_mult' in mults) == ('cps/' in method)
    (schedule,) = cfg.param_scheduler
    constant = kind == 'Adam'
    assert schedule.type == ('ConstantLR' if constant else 'PolyLR')
    assert (schedule.begin, schedule.end) == (0, steps)
    assert (schedule.factor if constant else schedule.power) == (1.0 if constant else 0.9)
    assert cfg.train_cfg.max_iters == steps and steps % cfg.train_cfg.val_interval == 0
    sampler = cfg.train_dataloader.sampler
    assert (sampler.batch_size, sampler.source_ratio) == (batch, [1, 1])
    model = cfg.model
    assert model.threshold == threshold and (model.sup_weight, model.unsup_weight) == weights
    for name, value in METHODS[method].items():
        assert model[name] == value
    mix = model.get('mix')
    assert (mix and mix.to_dict()) == MIXES[method]
    loss = model.segmentor.decode_head.loss_decode
    if ohem is None:
        assert loss.type == 'CrossEntropyLoss'
    else:
        thresh, min_kept, images = ohem
        assert (loss.type, loss.thresh) == ('mmdmt.OhemCrossEntropy', thresh)
        assert loss.min_kept * images == min_kept and loss.get('per_image', True)
    assert model.segmentor.decode_head.get('align_corners', 'dpt' in network)  # DPTHead's default
    black = 'unimatch' in method or 'fixmatch' in method
    assert model.segmentor.data_preprocessor.padding == ('black' if black else 'mean')
    test_cfg = model.segmentor.test_cfg
    if data == CITY:
        third = {801: 534, 798: 532, 800: 533}[crop]
        assert (test_cfg.mode, tuple(test_cfg.stride)) == ('slide', (third, third))
    else:
        assert test_cfg.mode == 'whole'


def test_unimatch_v2_has_its_published_lengths():
    """Those of the fewest labels, in thousands of steps as far as they are known."""
    lengths = read('supervised/dpt_dinov2-small_pascal_voc12-518x518').unimatch_v2_iters
    assert lengths[VOC]['92'] == 39300
    assert lengths[CITY]['186'] == 62640
    assert lengths['ade20k']['316'] == 149160
    assert lengths['coco81']['232'] == 147560


def test_unimatch_has_its_published_lengths_on_cityscapes():
    lengths = read('supervised/ohem_deeplabv3plus_r50_cityscapes-801x801').unimatch_iters
    assert lengths == {'186': 83520, '372': 78000, '744': 66720, '1488': 44400}


LISTS = {
    f'unimatch/unimatch_{R50}_pascal_voc12-321x321': ('92', '183', '366', '732', '662', '1323'),
    f'unimatch/unimatch_{R50}_cityscapes-801x801': ('186', '372', '744', '1488'),
    f'unimatch_v2/unimatch-v2_{S}_ade20k-518x518': ('316', '631', '1263', '2526', '5052'),
    f'unimatch_v2/unimatch-v2_{S}_coco81-518x518': ('232', '463', '925', '1849', '3697'),
}


@pytest.mark.parametrize('name', LISTS)
def test_any_published_list_is_an_option(name):
    for labels in LISTS[name]:
        cfg = read(name)
        merge_options(cfg, {f'{kind}_list': f'splits/{labels}/{kind}.txt' for kind in KINDS})
        found = resolve_config(cfg).train_dataloader.dataset.datasets
        for kind, dataset in zip(KINDS, found):
            assert dataset.ann_file == f'splits/{labels}/{kind}.txt'


def test_prevmatch_on_cityscapes_is_unimatch_with_earlier_students():
    method = load(f'prevmatch/prevmatch_{R101}_cityscapes-801x801').model
    own = load(f'{UNIMATCH}_{R101}_cityscapes-801x801').model
    # Of 4 labeled images of each of two devices.
    assert method.segmentor.decode_head.loss_decode.pop('min_kept') * 4 == 200000
    own.segmentor.decode_head.loss_decode.pop('min_kept')
    previous = method.pop('previous')
    assert method == own and method.threshold == 0
    assert (previous.keep, previous.max_labelers, previous.threshold) == (8, 3, 0)


def test_ade20k_is_scored_at_the_size_of_its_images():
    pipeline = load(f'{V2}_{S}_ade20k-518x518').val_dataloader.dataset.pipeline
    assert [step.type for step in pipeline] == [
        'LoadImageFromFile',
        'LoadAnnotations',
        'PackSegInputs',
    ]


def test_cutmix_seg_freezes_batch_norm_and_colors_what_the_student_sees():
    cfg = load('cutmix_seg/cutmix-seg_deeplabv2_r101_pascal_voc12-321x321')
    assert cfg.model.segmentor.backbone.norm_eval is True
    assert cfg.model.strong.preset == 'cutmix_seg'
    for dataset in cfg.train_dataloader.dataset.datasets:
        (resize,) = (step for step in dataset.pipeline if step.type == 'RandomResize')
        assert tuple(resize.ratio_range) == (0.5, 1.5)
