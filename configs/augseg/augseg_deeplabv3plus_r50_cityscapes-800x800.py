# AugSeg with DeepLabV3+ R50 on Cityscapes as published: crops, 16 labeled and 16 unlabeled images in a
# step, 240 passes, one rate for all layers, a multi-grid, and hard example mining: 100,000 pixels of
# the 4 labeled images of a device at least.
_base_ = './augseg_deeplabv3plus_r50_cityscapes-801x801.py'

crop_size = (800, 800)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 32
max_iters = 240 * ((2975 - 372) // 16)
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 8)
optim_wrapper = dict(optimizer=dict(lr=0.01, weight_decay=5e-4))
ohem = dict(_delete_=True, type='mmdmt.OhemCrossEntropy', thresh=0.7, min_kept=25000)
model = dict(
    segmentor=dict(
        data_preprocessor=dict(size=crop_size),
        backbone=dict(multi_grid=(1, 2, 4)),
        decode_head=dict(loss_decode=ohem),
    )
)
