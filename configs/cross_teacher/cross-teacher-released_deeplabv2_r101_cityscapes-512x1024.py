# What the released code trains in effect: no contrast, mixing masks of their own for both students,
# teachers in train mode whose batch-norm buffers no student moves. Its stronger head, crops of half
# resolution and pretrained weights are not repeated here.
_base_ = './cross-teacher_deeplabv2_r101_cityscapes-512x1024.py'

model = dict(
    contrast=None,
    shared_mix=False,
    mix=dict(partner='next'),
    ema=dict(buffers='keep', mode='train'),
    predict_on='student_l',
)
# The released code evaluates the students.
val_cfg = dict(networks=['student_l', 'student_r'])
test_cfg = dict(type='mmdmt.NetworksTestLoop', networks=['student_l', 'student_r'])
