# Crop, batch, optimizer, length (128 to 240 passes) and loss as in Cross Pseudo Supervision, on 8
# devices with 1 labeled image each. Its rate of 0.02 is not multiplied by the number of devices, so
# that 0.0025 and 8 times its weight decay are the same on one (schedule_cps_sgd.py).
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_cps_sgd.py',
    '../_base_/default_runtime.py',
]

evaluation_protocol = 'cityscapes_sliding'
crop_size = (800, 800)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 16
max_iters = 44640
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 8)
ohem = dict(_delete_=True, type='mmdmt.OhemCrossEntropy', thresh=0.7, min_kept=50000)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True, loss_decode=ohem),
)
optim_wrapper = dict(optimizer=dict(weight_decay=8e-4))
