# AugSeg: an EMA teacher labels; views of random intensity, into which labeled images are mixed the
# more often the less reliable the labels are. VOC is published with a momentum of 0.999.
method = dict(
    type='mmdmt.AugSeg',
    strong=dict(type='mmdmt.RandomIntensityAugment'),
    mix=dict(type='mmdmt.AdaptiveCutMix'),
    threshold=0.95,
    normalizer='all',
    extra_weak=False,
    sup_weight=1.0,
    unsup_weight=1.0,
    ema=dict(momentum=0.996),
    predict_on='teacher',
)
