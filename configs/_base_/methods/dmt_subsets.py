# DMT of members that start from the same weights: round 0 makes them different by two subsets of the
# labels (split_dataset.py --difference-maximized), the rounds use all labels.
_base_ = './dmt.py'

mutual = dict(
    members=[
        dict(name='left', seed=1, labeled_list='splits/1_8/fold_0/left.txt'),
        dict(name='right', seed=2, labeled_list='splits/1_8/fold_0/right.txt'),
    ],
)
# By dataset: batches, and as many steps in all as the labeled-only baselines take, with its
# learning rate.
runs = dict(
    pascal_voc12=dict(
        source_ratio=[1, 7],
        mutual=dict(
            supervised=dict(max_iters=10000),
            round=dict(max_iters=6000),
            pseudo_loss=_base_.gammas.pascal_voc12,
        ),
    ),
    cityscapes=dict(
        source_ratio=[1, 3],
        mutual=dict(
            supervised=dict(max_iters=20000),
            round=dict(max_iters=12000),
            pseudo_loss=_base_.gammas.cityscapes,
        ),
    ),
    ade20k=dict(
        source_ratio=[2, 6],
        mutual=dict(
            supervised=dict(max_iters=10000),
            round=dict(max_iters=6000),
            pseudo_loss=_base_.gammas.ade20k,
        ),
    ),
)
