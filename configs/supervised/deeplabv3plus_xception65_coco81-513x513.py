# Network, crop, batch, optimizer and length as in UniMatch: 30 passes over the images without labels.
_base_ = [
    '../_base_/models/deeplabv3plus_xception65-d16.py',
    '../_base_/datasets/coco81.py',
    '../_base_/schedules/schedule_40k_sgd.py',
    '../_base_/default_runtime.py',
]

sync_bn = 'torch'
batch_size = 16
max_iters = 30 * ((118287 - 3697) // 8)
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 10)
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
)
optim_wrapper = dict(
    optimizer=dict(lr=0.004, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
