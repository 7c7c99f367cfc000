# Ablation: each student learns from its own teacher, without contrast: two Mean Teachers.
_base_ = './cross-teacher_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

model = dict(taught_by='own', contrast=None)
