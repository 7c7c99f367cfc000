# Dual Teacher with SegFormer B1 on ADE20K, 1263 labels, as published: on two devices, with 4 + 4
# images on each, the learning rate of SegFormer, and 200 passes over the labeled images. The learning
# rate decays until the end of them (the released code always ends its decay at step 50000).
_base_ = [
    '../supervised/segformer_mit-b1_ade20k-512x512.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
labeled_list = 'splits/1_16/fold_0/labeled.txt'
unlabeled_list = 'splits/1_16/fold_0/unlabeled.txt'
max_iters = 31600  # 200 passes of 158 steps
train_cfg = dict(val_interval=max_iters // 10)
for dataset in _base_.train_dataloader.dataset.datasets:
    dataset.pipeline.insert(-1, dict(type='PhotoMetricDistortion'))
train_dataloader = dict(dataset=dict(datasets=_base_.train_dataloader.dataset.datasets))
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
