# U2PL: an EMA teacher's labels of low entropy supervise mixed images; pixels of high entropy are
# negatives of the classes that they are not. The weight of the contrast is that of the paper, the
# released code has 1; labeled images alone in the first of 80 passes, as on VOC.
method = dict(
    type='mmdmt.U2PL',
    mix=dict(type='mmdmt.CutMix', prob=0.5, boxes='half', partner='next'),
    drop_percent=20,
    normalizer='kept',
    sup_only=0.0125,
    contrast=dict(weight=0.1, temperature=0.5, anchors_per_class=256, negatives=50),
    ema=dict(momentum=0.99, buffers='keep'),
    predict_on='teacher',
)
