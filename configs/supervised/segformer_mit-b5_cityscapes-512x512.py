_base_ = [
    '../_base_/models/segformer_mit-b5.py',
    '../_base_/datasets/cityscapes_target.py',
    '../_base_/schedules/schedule_40k_adamw.py',
    '../_base_/default_runtime.py',
]

model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
