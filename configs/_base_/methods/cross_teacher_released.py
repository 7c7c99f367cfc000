# Cross Teacher Training as its released code computes it: no contrast, two passes of each student, a
# mixed image for each of them that is augmented as a whole, and teachers in train mode whose
# batch-norm buffers no student moves.
_base_ = './cross_teacher.py'

method = dict(
    strong=dict(preset='ctt_released'),
    mix=dict(partner='next'),
    mix_first=True,
    shared_mix=False,
    batch_statistics='separate',
    contrast=None,
    ema=dict(mode='train', buffers='keep'),
    predict_on='student_l',
)
# Its optimizer, images without flips, and what it evaluates.
released_optimizer = dict(
    optimizer=dict(lr=2.5e-4),
    paramwise_cfg=dict(custom_keys=dict(decode_head=dict(lr_mult=10.0))),
)
released_students = ['student_l', 'student_r']
