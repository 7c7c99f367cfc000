# Dual Teacher: two temporary teachers take turns; the one on duty labels for the student and
# follows it. Shifts, weights and the sub-model are the published ones by default.
method = dict(
    type='mmdmt.DualTeacher',
    strong=dict(type='mmdmt.StrongAugment', preset='dual_teacher'),
    shift_length='epoch',
    threshold=0.95,
    unsup_weight=1.0,
    consistency_weight=0.2,
    rampup_iters=0,
    ema=dict(momentum=0.99),
    predict_on='student',
)
