# Ablation: cross teachers alone, which is what the published code trains in effect.
_base_ = './cross-teacher_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py'

model = dict(semi_train_cfg=dict(contrast=None))
