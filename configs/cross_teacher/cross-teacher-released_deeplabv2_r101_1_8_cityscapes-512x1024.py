# What the published code trains in effect: no contrast, mixing masks of their own for both students,
# teachers in train mode whose batch-norm buffers no student moves. Its stronger head, crops of half
# resolution and pretrained weights are not repeated here.
_base_ = './cross-teacher_deeplabv2_r101_1_8_cityscapes-512x1024.py'

model = dict(
    semi_train_cfg=dict(
        contrast=None,
        shared_mix=False,
        mix=dict(partner='shuffle'),
        teacher_mode='train',
        ema=dict(buffers='keep'),
    ),
    semi_test_cfg=dict(predict_on='student_l'),
)
# The published code evaluates the students.
networks = ['student_l', 'student_r']
val_cfg = dict(networks=networks)
test_cfg = dict(networks=networks)
