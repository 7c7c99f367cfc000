# Crop, batch, optimizer and length as in PrevMatch: 40 passes over the images without labels.
_base_ = './deeplabv3plus_r50_ade20k-512x512.py'

evaluation_protocol = 'ade20k_whole'
crop_size = (513, 513)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 16
max_iters = 40 * ((20210 - 2526) // 8)
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 10)
model = dict(data_preprocessor=dict(size=crop_size), decode_head=dict(align_corners=True))
optim_wrapper = dict(
    optimizer=dict(lr=0.004, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
