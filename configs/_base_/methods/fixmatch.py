# FixMatch as the baseline of UniMatch: the student's own confident labels of the weak view, given in
# eval mode, supervise its mixed strong view.
method = dict(
    type='mmdmt.FixMatch',
    labeler='student',
    strong=dict(type='mmdmt.StrongAugment', preset='unimatch'),
    mix=dict(type='mmdmt.CutMix'),
    threshold=0.95,
    sup_weight=0.5,
    unsup_weight=0.5,
    predict_on='student',
)
