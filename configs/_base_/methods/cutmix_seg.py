# CutMix-Seg: an EMA teacher's mixed probabilities are the soft targets of mixed images.
method = dict(
    type='mmdmt.CutMixSeg',
    mix=dict(type='mmdmt.CutMix', prob=1.0, boxes='french', count=1, area=(0.5, 0.5)),
    threshold=0.97,
    per_pixel=False,
    sup_weight=1.0,
    unsup_weight=1.0,
    ema=dict(momentum=0.99, warmup=False, mode='train', buffers='ema'),
    predict_on='teacher',
)
