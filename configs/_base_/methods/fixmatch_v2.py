# FixMatch as the baseline of UniMatch V2: an EMA teacher labels.
method = dict(
    type='mmdmt.FixMatch',
    labeler='teacher',
    strong=dict(type='mmdmt.StrongAugment', preset='unimatch'),
    mix=dict(type='mmdmt.CutMix', partner='flip'),
    threshold=0.95,
    sup_weight=0.5,
    unsup_weight=0.5,
    ema=dict(momentum=0.996),
    predict_on='teacher',
)
