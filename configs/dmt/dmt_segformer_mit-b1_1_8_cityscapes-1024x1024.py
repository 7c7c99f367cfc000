# DMT with SegFormer B1 on Cityscapes, one label in eight images. A member takes 20000 + 5 x 12000 =
# 80000 steps, as many as the labeled-only baseline. Both start from the same ImageNet weights, so
# round 0 makes them different by two subsets of the labels (split_dataset.py
# --difference-maximized).
# Gammas and ratios are those that DMT published for this data set with DeepLabV2; full resolution,
# evaluation in windows.
_base_ = '../supervised/supervised_segformer_mit-b1_1_8_cityscapes-1024x1024.py'

unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
evaluation_protocol = 'cityscapes_sliding'
runner_type = 'mmdmt.MutualTrainingRunner'
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 3]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
mutual = dict(
    members=[
        dict(name='left', seed=1, labeled_list='splits/1_8/fold_0/left.txt'),
        dict(name='right', seed=2, labeled_list='splits/1_8/fold_0/right.txt'),
    ],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    supervised=dict(max_iters=20000, lr=6e-5),
    round=dict(max_iters=12000, lr=6e-5, source_ratio=[1, 3]),
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=3.0, gamma2=3.0),
)
