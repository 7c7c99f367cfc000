# Cross Pseudo Supervision with CutMix: each of two students learns the labels of the other on mixed
# images. Published with unsup_weight 1 on PASCAL VOC and 5 on Cityscapes.
method = dict(
    type='mmdmt.CPS',
    mix=dict(type='mmdmt.CutMix', prob=1.0, boxes='french', count=3, area=(0.25, 0.5)),
    threshold=0.0,
    sup_weight=1.0,
    unsup_weight=1.0,
    predict_on='student_l',
)
