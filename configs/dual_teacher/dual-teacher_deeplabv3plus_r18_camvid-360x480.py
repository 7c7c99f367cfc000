# Dual Teacher with DeepLabV3+ R18 on CamVid.
_base_ = [
    '../supervised/deeplabv3plus_r18_camvid-360x480.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
# A pass over 45 labeled images is 12 steps, over which an average is no steadier than the student.
method = dict(_base_.method, shift_length=200)
model = dict(_delete_=True, segmentor=_base_.model, **method)
