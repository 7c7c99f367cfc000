"""Published values of the online methods in their configs."""

import pytest
from shipped_configs import load, read

from mmdmt.config import merge_options, resolve_config

#: By folder and method: network, data, images in a step, steps, optimizer, head, decay, threshold.
UNIMATCH = 'unimatch/unimatch'
V2 = 'unimatch_v2/unimatch-v2'
CPS, CPS_CUTMIX = 'cps/cps', 'cps/cps-cutmix'
FIXMATCH, FIXMATCH_V2 = 'fixmatch/fixmatch', 'fixmatch/fixmatch-v2'
AUGSEG, U2PL, PREVMATCH = 'augseg/augseg', 'u2pl/u2pl', 'prevmatch/prevmatch'
KINDS = ('labeled', 'unlabeled')
VOC, CITY = 'pascal_voc12', 'cityscapes'
R50, R101, X65 = (f'deeplabv3plus_{backbone}' for backbone in ('r50', 'r101', 'xception65'))
S, B, L, V3 = (f'dpt_dino{size}' for size in ('v2-small', 'v2-base', 'v2-large', 'v3-small'))
SGD = ('SGD', 0.001, 1e-4, 10.0)
SGD_CITY = ('SGD', 0.005, 1e-4, 1.0)
SGD_LARGE = ('SGD', 0.004, 1e-4, 10.0)  # COCO and ADE20K
SGD_TEACHER_CITY = ('SGD', 0.01, 5e-4, 1.0)  # U2PL and AugSeg
DINO = ('AdamW', 5e-6, 0.01, 40.0)
# Effective values: see the schedule of CPS.
SGD_CPS, SGD_CPS_CITY = ('SGD', 0.0025, 4e-4, 1.0), ('SGD', 0.0025, 8e-4, 1.0)
# Pixels kept of the images that one device had.
OHEM_2, OHEM_1 = (0.7, 200000, 2), (0.7, 50000, 1)
HALF = (0.5, 0.5)
# 240 passes over 2603 images, 8 in a step; 60 over 9259, 17684 and 20 over 114590, 16 or 8, ...
PUBLISHED = {
    **{
        (method, net, VOC): (321, 16, 80 * 1157, SGD, 0.95, HALF, None)
        for method, nets in ((UNIMATCH, (R50, R101)), (PREVMATCH, (R50, R101)), (FIXMATCH, (R50,)))
        for net in nets
    },
    **{
        (method, net, CITY): (801, 16, 240 * 325, SGD_CITY, 0.0, HALF, ohem)
        for method, nets, ohem in (
            (UNIMATCH, (R50, R101), OHEM_2),
            (PREVMATCH, (R50, R101), (0.7, 200000, 4)),
            (FIXMATCH, (R50,), OHEM_2),
        )
        for net in nets
    },
    **{
        (method, X65, 'coco81'): (513, 16, 30 * 14323, SGD_LARGE, 0.95, HALF, None)
        for method in (UNIMATCH, PREVMATCH)
    },
    (PREVMATCH, R50, 'ade20k'): (513, 16, 40 * 2210, SGD_LARGE, 0.95, HALF, None),
    **{
        (V2, net, data): (crop, batch, steps, DINO, 0.95, HALF, loss)
        for data, nets, crop, batch, steps, loss in (
            (VOC, (S, B, L), 518, 32, 60 * 578, None),
            (CITY, (S, B), 798, 16, 180 * 325, OHEM_2),
            ('ade20k', (S, B, L), 518, 16, 60 * 2210, None),
            ('coco81', (S, B), 518, 32, 20 * 7161, None),
        )
        for net in nets
    },
    (V2, V3, VOC): (512, 32, 60 * 578, DINO, 0.95, HALF, None),
    **{(FIXMATCH_V2, net, VOC): (518, 32, 60 * 578, DINO, 0.95, HALF, None) for net in (S, B)},
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
    # 80 passes over 9259, 240 and 200 over 2603 images, 16 in a step.
    **{(AUGSEG, net, VOC): (513, 32, 80 * 578, SGD, 0.95, (1, 1), None) for net in (R50, R101)},
    **{
        (AUGSEG, net, CITY): (
            800, 32, 240 * 162, SGD_TEACHER_CITY, 0.0, (1, 1), (0.7, 100000, 4)
        )
        for net in (R50, R101)
    },
    (U2PL, R101, VOC): (513, 32, 80 * 578, SGD, None, None, None),
    (U2PL, R101, CITY): (769, 32, 200 * 162, SGD_TEACHER_CITY, None, None, (0.7, 100000, 2)),
    ('cutmix_seg/cutmix-seg', 'deeplabv2_r101', VOC): (
        321, 20, 40000, ('Adam', 3e-5, 0, 1.0), 0.97, (1.0, 1.0), None
    ),
}  # fmt: skip
METHODS = {
    UNIMATCH: dict(type='mmdmt.UniMatch', feature_dropout=0.5, feature_share=0.5),
    PREVMATCH: dict(type='mmdmt.UniMatch', feature_dropout=0.5, feature_share=0.5),
    V2: dict(type='mmdmt.UniMatchV2', clean_share=0.5, ema=dict(momentum=0.996)),
    FIXMATCH: dict(type='mmdmt.FixMatch', labeler='student'),
    FIXMATCH_V2: dict(type='mmdmt.FixMatch', labeler='teacher', ema=dict(momentum=0.996)),
    CPS: dict(type='mmdmt.CPS', predict_on='student_l'),
    CPS_CUTMIX: dict(type='mmdmt.CPS', predict_on='student_l'),
    AUGSEG: dict(type='mmdmt.AugSeg', normalizer='all'),
    U2PL: dict(type='mmdmt.U2PL', drop_percent=20, normalizer='kept'),
    'cutmix_seg/cutmix-seg': dict(
        type='mmdmt.CutMixSeg',
        per_pixel=False,
        ema=dict(momentum=0.99, warmup=False, mode='train', buffers='ema'),
    ),
}
UNIMATCH_BOX = dict(type='mmdmt.CutMix')
MIXES = {
    UNIMATCH: UNIMATCH_BOX,
    PREVMATCH: UNIMATCH_BOX,
    FIXMATCH: UNIMATCH_BOX,
    V2: dict(UNIMATCH_BOX, partner='flip'),
    FIXMATCH_V2: dict(UNIMATCH_BOX, partner='flip'),
    AUGSEG: dict(type='mmdmt.AdaptiveCutMix'),
    U2PL: dict(type='mmdmt.CutMix', prob=0.5, boxes='half', partner='next'),
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
    assert model.get('threshold') == threshold
    assert (model.get('sup_weight', 1), model.get('unsup_weight', 1)) == (weights or (1, 1))
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
    black = model.type in ('mmdmt.UniMatch', 'mmdmt.UniMatchV2', 'mmdmt.FixMatch')
    assert model.segmentor.data_preprocessor.padding == ('black' if black else 'mean')
    test_cfg = model.segmentor.test_cfg
    if data == CITY:
        third = {801: 534, 798: 532, 800: 533, 769: 512}[crop]
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


VOC_LISTS = ('92', '183', '366', '732', '1464', '662', '1323', '2646', '5291')
LISTS = {
    f'unimatch/unimatch_{R50}_pascal_voc12-321x321': VOC_LISTS,
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


def test_networks_of_u2pl_and_augseg_are_dilated_as_published():
    for data in (f'{VOC}-513x513', f'{CITY}-769x769'):
        network = load(f'{U2PL}_{R101}_{data}').model.segmentor
        backbone = network.backbone
        assert (backbone.strides, backbone.dilations) == ((1, 2, 1, 1), (1, 1, 2, 4))
        assert (backbone.multi_grid, network.decode_head.dilations) == ((1, 2, 4), (1, 12, 24, 36))
        assert ('auxiliary_head' in network) == (CITY in data)
        if CITY in data:
            assert network.auxiliary_head.loss_decode.loss_weight == 0.4
            assert network.auxiliary_head.in_index == 2
    for net in (R50, R101):
        for data in (f'{VOC}-513x513', f'{CITY}-800x800'):
            network = load(f'{AUGSEG}_{net}_{data}').model.segmentor
            assert network.backbone.strides[-2:] == (2, 1) and network.backbone.multi_grid
            assert network.decode_head.dilations == (1, 6, 12, 18)


def test_prevmatch_has_fewer_copies_where_images_are_many():
    for net, data, passes in ((X65, 'coco81', 14323), (R50, 'ade20k', 2210)):
        previous = load(f'{PREVMATCH}_{net}_{data}-513x513').model.previous
        assert (previous.keep, previous.skip, previous.threshold) == (5, 5 * passes, 0.9)
        assert (previous.max_labelers, previous.every) == (3, 'epoch')


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
