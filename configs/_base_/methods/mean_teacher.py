# Mean Teacher: hard labels of an EMA teacher on the weak view, where it is sure, for the strong one.
semi_data_preprocessor = dict(
    type='mmdmt.SemiDataPreprocessor',
    mean=[123.675, 116.28, 103.53],
    std=[58.395, 57.12, 57.375],
    bgr_to_rgb=True,
    pad_val=0,
    seg_pad_val=255,
    strong=dict(type='mmdmt.StrongAugment'),
)
semi_train_cfg = dict(
    threshold=0.95,
    unsup_weight=1.0,
    ema=dict(momentum=0.99),
    mix=dict(type='mmdmt.CutMix'),
)
custom_hooks = [dict(type='mmdmt.TeacherUpdateHook')]
