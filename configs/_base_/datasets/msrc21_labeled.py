# MSRC-21, labeled images alone: for labeled-only baselines.
_base_ = './msrc21.py'

train_dataloader = dict(
    sampler=dict(source_ratio=[1]),
    dataset=dict(datasets=[{{_base_.labeled_dataset}}]),
)
