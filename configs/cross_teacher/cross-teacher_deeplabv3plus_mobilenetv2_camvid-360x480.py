# Cross Teacher Training with a small network on CamVid.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_camvid-360x480.py',
    '../_base_/methods/cross_teacher.py',
]

source_ratio = [1, 1]
# Few steps: small banks, and a start with half of the classes, since rare ones fill slowly.
contrast = dict(
    _base_.method.contrast,
    bank=dict(size=64, threshold=0.95),
    projection=dict(channels=64),
    start=0.5,
)
method = dict(_base_.method, contrast=contrast)
model = dict(_delete_=True, segmentor=_base_.model, **method)
