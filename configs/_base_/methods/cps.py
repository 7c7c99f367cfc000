# Cross Pseudo Supervision without mixing: each of two students learns what the other predicts, on
# labeled and unlabeled images. Published with unsup_weight 1.5 on PASCAL VOC and 6 on Cityscapes.
method = dict(
    type='mmdmt.CPS',
    threshold=0.0,
    sup_weight=1.0,
    unsup_weight=1.5,
    predict_on='student_l',
)
