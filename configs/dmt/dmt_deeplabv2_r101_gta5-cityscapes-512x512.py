_base_ = [
    '../supervised/deeplabv2_r101_gta5-cityscapes-512x512.py',
    '../_base_/methods/dmt_shift.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 1]
mutual = dict(labeling=dict(pipeline=_base_.labeling_pipeline))
