# Dynamic mutual training on your own images: see ../_base_/datasets/folder.py for what to set.
# Two members, 1000 steps on the labels and five rounds of 1000 steps each: enough for some dozens
# of labeled images; more of them need a longer round 0.
_base_ = '../supervised/supervised_deeplabv3plus_mobilenetv2_labeled_folder-512x512.py'

runner_type = 'mmdmt.MutualTrainingRunner'
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 3]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
mutual = dict(
    members=[dict(name='a', seed=1), dict(name='b', seed=2)],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    supervised=dict(max_iters=1000),
    round=dict(max_iters=1000, source_ratio=[1, 3]),
    # Published are 5 and 5, which members that few images taught can not bear: docs/dmt.md.
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=1.0, gamma2=1.0),
    ensemble=True,  # at the end also the mean of both members' predictions
)
