# Dynamic mutual training on the small MSRC-21 benchmark of docs/results.md. Each member takes
# 3 x 600 = 1800 steps of 8 images, as many as the labeled-only baseline.
_base_ = '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py'

runner_type = 'mmdmt.MutualTrainingRunner'
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
mutual = dict(
    members=[dict(name='a', seed=1), dict(name='b', seed=2)],
    ratios=[0.5, 1.0],
    supervised=dict(max_iters=600),
    round=dict(max_iters=600, source_ratio=[3, 5]),
    # Members that 34 images taught are unsure: larger gammas would leave little to learn.
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=1.0, gamma2=1.0),
    ensemble=True,  # at the end also the mean of both members' predictions
)
