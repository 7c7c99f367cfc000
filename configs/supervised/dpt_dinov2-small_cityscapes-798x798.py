# Crop, batch, optimizer, loss and length as in UniMatch V2.
_base_ = [
    '../_base_/models/dpt_dinov2-small.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_unimatch_v2_dino.py',
    '../_base_/default_runtime.py',
]

evaluation_protocol = 'cityscapes_sliding'
crop_size = (798, 798)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 16
max_iters = _base_.unimatch_v2_iters['cityscapes']['372']
length_settings = dict(max_iters=dict(default=max_iters))
train_cfg = dict(val_interval=max_iters // 10)
ohem = dict(_delete_=True, type='mmdmt.OhemCrossEntropy', thresh=0.7, min_kept=100000)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes, loss_decode=ohem),
)
