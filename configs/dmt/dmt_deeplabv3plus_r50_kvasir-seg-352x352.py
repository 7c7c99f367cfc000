_base_ = [
    '../supervised/deeplabv3plus_r50_kvasir-seg-352x352.py',
    '../_base_/methods/dmt.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [2, 6]
mutual = dict(supervised=dict(max_iters=10000), round=dict(max_iters=2000))
