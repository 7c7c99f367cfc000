# Ablation: cross teachers alone, which is what the released code trains in effect.
_base_ = './cross-teacher_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

model = dict(contrast=None)
