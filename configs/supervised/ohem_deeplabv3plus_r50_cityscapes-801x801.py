# Length, batch and loss as in UniMatch: 200,000 pixels of the 2 labeled images of a device at least.
_base_ = [
    '../_base_/models/deeplabv3plus_r50-d16.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/schedule_unimatch_cityscapes_sgd.py',
    '../_base_/default_runtime.py',
]

evaluation_protocol = 'cityscapes_sliding'
crop_size = (801, 801)
crop_settings = dict(crop_size=dict(default=crop_size))  # the model is written with it
batch_size = 16
ohem = dict(_delete_=True, type='mmdmt.OhemCrossEntropy', thresh=0.7, min_kept=100000)
model = dict(
    data_preprocessor=dict(size=crop_size),
    decode_head=dict(num_classes=_base_.num_classes, align_corners=True, loss_decode=ohem),
)
