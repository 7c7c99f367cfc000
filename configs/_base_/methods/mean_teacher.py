# Mean Teacher: the confident labels of an EMA teacher on the weak view supervise the student on the
# strong one.
method = dict(
    type='mmdmt.MeanTeacher',
    strong=dict(type='mmdmt.StrongAugment', preset='unimatch'),
    mix=dict(type='mmdmt.CutMix'),
    threshold=0.95,
    unsup_weight=1.0,
    rampup_iters=0,
    ema=dict(momentum=0.99),
    predict_on='teacher',
)
