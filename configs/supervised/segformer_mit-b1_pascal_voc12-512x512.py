_base_ = [
    '../_base_/models/segformer_mit-b1.py',
    '../_base_/datasets/pascal_voc12_aug.py',
    '../_base_/schedules/schedule_40k_adamw.py',
    '../_base_/default_runtime.py',
]

crop_size = (512, 512)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
