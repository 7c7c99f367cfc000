# UniMatch: the student's own labels of the weak view supervise two mixed strong views and the weak
# view with dropped feature channels.
method = dict(
    type='mmdmt.UniMatch',
    strong=dict(type='mmdmt.StrongAugment', preset='unimatch'),
    mix=dict(type='mmdmt.CutMix'),
    threshold=0.95,
    feature_dropout=0.5,
    feature_share=0.5,
    sup_weight=0.5,
    unsup_weight=0.5,
    predict_on='student',
)
