# Cross Teacher Training: two students, each taught by the teacher of the other, and contrast
# between their features. Values of the paper, but for the weights of the contrastive losses, which
# its code never adds, so that they are not known.
semi_data_preprocessor = dict(
    type='mmdmt.SemiDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    strong=dict(type='mmdmt.StrongAugment', preset='ctt'),
    num_strong=2,
)
semi_train_cfg = dict(
    threshold=0.968,
    unsup_weight=1.0,
    ema=dict(momentum=0.99),
    mix=dict(type='mmdmt.ClassMix'),
    contrast=dict(
        high_weight=0.1,
        low_weight=0.1,
        high_temperature=0.1,
        low_temperature=0.5,
        threshold=0.75,
        bank_size=256,
        bank_threshold=0.95,
        anchors_per_class=256,
    ),
)
networks = ['student_l', 'student_r', 'teacher_l', 'teacher_r', 'average', 'teacher_average']
custom_hooks = [dict(type='mmdmt.TeacherUpdateHook')]
