# COCO 2017, labeled images alone: for labeled-only baselines.
_base_ = './coco81.py'

train_dataloader = dict(
    sampler=dict(source_ratio=[1]),
    dataset=dict(datasets=[{{_base_.labeled_dataset}}]),
)
