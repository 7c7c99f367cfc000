# DMT with a small network on CamVid, one label in eight images. A member takes 1500 + 5 x 500 = 4000
# steps, as many as the labeled-only baseline.
_base_ = '../supervised/supervised_deeplabv3plus_mobilenetv2_1_8_camvid-360x480.py'

unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
runner_type = 'mmdmt.MutualTrainingRunner'
train_dataloader = dict(
    sampler=dict(source_ratio=[1, 1]),
    dataset=dict(datasets=[_base_.labeled_dataset, _base_.unlabeled_dataset]),
)
mutual = dict(
    members=[dict(name='a', seed=1), dict(name='b', seed=2)],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    supervised=dict(max_iters=1500),
    # Members that 45 images taught are unsure: half of a batch is labeled, and gammas are small.
    round=dict(max_iters=500, source_ratio=[1, 1]),
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', gamma1=1.0, gamma2=1.0),
)
