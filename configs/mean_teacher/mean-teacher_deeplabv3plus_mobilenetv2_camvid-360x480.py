# Mean Teacher with a small network on CamVid.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_camvid-360x480.py',
    '../_base_/methods/mean_teacher.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
