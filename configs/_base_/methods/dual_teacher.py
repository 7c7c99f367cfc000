# Dual Teacher: two temporary teachers take turns; the one on duty labels for the student and
# follows it. Shifts, weights and the sub-model are the published ones by default.
semi_data_preprocessor = dict(
    type='mmdmt.SemiDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    strong=dict(type='mmdmt.StrongAugment', preset='dual_teacher'),
)
semi_train_cfg = dict(
    threshold=0.95,
    unsup_weight=1.0,
    consistency_weight=0.2,
    ema=dict(momentum=0.99),
)
custom_hooks = [
    dict(type='mmdmt.SwitchTeacherHook', every='epoch'),
    dict(type='mmdmt.TeacherUpdateHook'),
    dict(type='mmdmt.CouplingHook', interval=50),
]
