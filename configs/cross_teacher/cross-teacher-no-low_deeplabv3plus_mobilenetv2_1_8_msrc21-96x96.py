# Ablation: without the low-level contrastive module.
_base_ = './cross-teacher_deeplabv3plus_mobilenetv2_1_8_msrc21-96x96.py'

model = dict(semi_train_cfg=dict(contrast=dict(low_weight=0)))
