# Labeled-only baseline of docs/results.md: small images, a schedule for CPUs.
_base_ = [
    '../_base_/models/deeplabv3plus_mobilenetv2-d16.py',
    '../_base_/datasets/msrc21-96.py',
    '../_base_/schedules/schedule_cpu_adamw.py',
    '../_base_/default_runtime.py',
]

channels_last = True  # halves the step of MobileNetV2 on a CPU
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
default_hooks = dict(checkpoint=dict(interval=600))
