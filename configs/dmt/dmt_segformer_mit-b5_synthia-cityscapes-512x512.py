_base_ = [
    '../supervised/segformer_mit-b5_synthia-cityscapes-512x512.py',
    '../_base_/methods/dmt_shift.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 1]
mutual = dict(labeling=dict(pipeline=_base_.labeling_pipeline))
