# Ablation: each student learns from its own teacher, as two Mean Teachers with contrast between them.
_base_ = './cross-teacher_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

model = dict(taught_by='own')
