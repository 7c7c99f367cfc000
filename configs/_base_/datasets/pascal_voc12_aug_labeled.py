# PASCAL VOC 2012 with the masks of SBD, labeled images alone: for labeled-only baselines.
_base_ = './pascal_voc12_aug.py'

train_dataloader = dict(
    sampler=dict(source_ratio=[1]),
    dataset=dict(datasets=[{{_base_.labeled_dataset}}]),
)
