# Your own images, labeled images alone: for labeled-only baselines.
_base_ = './folder.py'

train_dataloader = dict(
    sampler=dict(source_ratio=[1]),
    dataset=dict(datasets=[{{_base_.labeled_dataset}}]),
)
