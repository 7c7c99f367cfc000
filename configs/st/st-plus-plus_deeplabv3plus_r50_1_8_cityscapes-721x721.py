# ST++ with DeepLabV3+ R50 on Cityscapes, 371 labels.
_base_ = './st_deeplabv3plus_r50_1_8_cityscapes-721x721.py'

mutual = dict(
    ratios=[1.0, 1.0],
    round=dict(_base_.st_runs.cityscapes['371'].st_plus_plus.round, images=['reliable', 'all']),
)
