# Ablation: without the high-level contrastive module.
_base_ = './cross-teacher_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

model = dict(contrast=dict(high=dict(weight=0.0)))
