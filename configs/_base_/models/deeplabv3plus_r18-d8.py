_base_ = './deeplabv3plus_r18-d16.py'

model = dict(
    backbone=dict(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4)),
    decode_head=dict(dilations=(1, 12, 24, 36)),
)
