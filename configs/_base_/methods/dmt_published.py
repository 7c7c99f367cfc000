# The sets, batches and epochs that DMT and DST-CBC published, and the steps that follow from them.
#
# An epoch of round 0 is a pass over the labeled images, one of a round a pass over the
# pseudo-labeled ones. `subset` is round 0 on one of the two difference-maximized subsets, which
# hold all labeled images but a fifth (rounded up).
#
# `val_interval` is that of round 0: the scripts choose the best of so many checkpoints. `ablation`
# are the 211 labels of 1/50 on which DMT's ablations were made: another fold, and fewer epochs
# than the 212 of DST-CBC's script for 1/50, which DMT's run of that size takes here.
_base_ = './dmt.py'

published_sets = dict(
    pascal_voc12={
        '1_106': dict(images=10582, labeled=100, epochs=300, round_epochs=4, val_interval=100),
        '1_50': dict(images=10582, labeled=211, epochs=212, round_epochs=4, val_interval=140),
        '1_20': dict(images=10582, labeled=530, epochs=134, round_epochs=4, val_interval=220),
        '1_8': dict(images=10582, labeled=1322, epochs=85, round_epochs=4, val_interval=350),
        '1_4': dict(images=10582, labeled=2645, epochs=60, round_epochs=4, val_interval=500),
        '1464': dict(images=10582, labeled=1464, epochs=85, round_epochs=5, val_interval=350),
        'ablation': dict(images=10582, labeled=211, epochs=134, round_epochs=4, val_interval=220),
    },
    cityscapes={
        '1_30': dict(images=2975, labeled=100, epochs=330, round_epochs=10, val_interval=100),
        '1_8': dict(images=2975, labeled=371, epochs=170, round_epochs=10, val_interval=350),
        '1_4': dict(images=2975, labeled=743, epochs=120, round_epochs=10, val_interval=500),
    },
)
pseudo_batch = dict(pascal_voc12=7, cityscapes=6)  # of DMT's rounds
# -(-a // b) is a / b rounded up: the last batch of an epoch may be smaller. Batches have 8 images.
published_steps = {
    dataset: {
        labels: dict(
            supervised=-(-s['labeled'] // 8) * s['epochs'],
            subset=-(-(s['labeled'] - -(-s['labeled'] // 5)) // 8) * s['epochs'],
            dmt_round=-(-(s['images'] - s['labeled']) // pseudo_batch[dataset]) * s['round_epochs'],
            dst_cbc_round=-(-(s['images'] - s['labeled']) // 4) * 6,
        )
        for labels, s in sets.items()
    }
    for dataset, sets in published_sets.items()
}
# Of a leaf: lists (1 label in 105.82 and 29.75 are the published divisors), the members of round 0 on
# two subsets, and the lengths of each kind of run.
list_folders = {
    '1_106': 'splits/1_105.82/fold_0',
    '1_30': 'splits/1_29.75/fold_0',
    'ablation': 'splits/1_50/fold_2',
}
published = {
    dataset: {
        labels: dict(
            lists=[
                f'{list_folders.get(labels, f"splits/{labels}/fold_0")}/{kind}.txt'
                for kind in ('labeled', 'unlabeled')
            ],
            members=[
                dict(
                    name=side,
                    seed=seed,
                    labeled_list=f'{list_folders.get(labels, f"splits/{labels}/fold_0")}/{side}.txt',
                )
                for seed, side in ((1, 'left'), (2, 'right'))
            ],
            **{
                run: dict(
                    supervised=dict(
                        max_iters=steps[labels]['subset' if run == 'dmt_subsets' else 'supervised'],
                        cfg_options={'train_cfg.val_interval': s['val_interval']},
                    ),
                    round=dict(
                        max_iters=steps[labels][
                            'dst_cbc_round' if run == 'dst_cbc' else 'dmt_round'
                        ]
                    ),
                )
                for run in ('dmt', 'dmt_subsets', 'dst_cbc')
            },
        )
        for labels, s in published_sets[dataset].items()
    }
    for dataset, steps in published_steps.items()
}
# The labels of VOC itself, and the images of SBD.
published['pascal_voc12']['1464']['lists'] = [
    'ImageSets/Segmentation/train.txt',
    'splits/1464/unlabeled.txt',
]

# COCO weights of Caffe: BGR from 0 to 255, only the mean subtracted. The files are made by
# tools/model_converters/advsemiseg_deeplabv2.py, that of Cityscapes --without-classifier.
coco_options = dict(
    model=dict(
        data_preprocessor=dict(
            mean=[104.008, 116.669, 122.675], std=[1.0, 1.0, 1.0], bgr_to_rgb=False
        ),
        backbone=dict(init_cfg=None),
    )
)
