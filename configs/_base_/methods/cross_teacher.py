# Cross Teacher Training: two students, each taught by the teacher of the other, and contrast
# between their features. Thresholds, temperatures, momentum and banks are those of the released code;
# the weights of the contrastive losses, which it never adds, are not known.
method = dict(
    type='mmdmt.CrossTeacher',
    strong=dict(type='mmdmt.StrongAugment', preset='ctt'),
    mix=dict(type='mmdmt.ClassMix'),
    threshold=0.968,
    unsup_weight=1.0,
    rampup_iters=0,
    ema=dict(momentum=0.99),
    contrast=dict(
        threshold=0.75,
        anchors_per_class=256,
        bank=dict(size=256, threshold=0.95),
        high=dict(weight=0.1, temperature=0.1),
        low=dict(weight=0.1, temperature=0.5),
    ),
    predict_on='teacher_average',
)
