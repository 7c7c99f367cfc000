# DMT with SegFormer B1 on PASCAL VOC 2012, one label in eight images. A member takes 10000 + 5 x 6000 =
# 40000 steps, as many as the labeled-only baseline. Both start from the same ImageNet weights, so
# round 0 makes them different by two subsets of the labels (split_dataset.py
# --difference-maximized).
# Gammas, ratios and batch are those that DMT published for this data set with DeepLabV2, and the
# learning rate of a round is half that of round 0 as there.
_base_ = '../supervised/supervised_segformer_mit-b1_1_8_pascal_voc12-512x512.py'

unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
evaluation_protocol = 'pascal_voc12_whole'
runner_type = 'mmdmt.MutualTrainingRunner'
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 7]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
mutual = dict(
    members=[
        dict(name='left', seed=1, labeled_list='splits/1_8/fold_0/left.txt'),
        dict(name='right', seed=2, labeled_list='splits/1_8/fold_0/right.txt'),
    ],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    supervised=dict(max_iters=10000, lr=6e-5),
    round=dict(max_iters=6000, lr=3e-5, source_ratio=[1, 7]),
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=5.0, gamma2=5.0),
)
