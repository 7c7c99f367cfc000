# UniMatch V2: an EMA teacher's labels supervise two mixed strong views, whose feature channels are
# dropped so that each survives in one of them.
method = dict(
    type='mmdmt.UniMatchV2',
    strong=dict(type='mmdmt.StrongAugment', preset='unimatch'),
    mix=dict(type='mmdmt.CutMix', partner='flip'),
    threshold=0.95,
    clean_share=0.5,
    sup_weight=0.5,
    unsup_weight=0.5,
    ema=dict(momentum=0.996),
    predict_on='teacher',
)
