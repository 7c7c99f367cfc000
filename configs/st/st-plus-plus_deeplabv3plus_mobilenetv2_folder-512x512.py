# ST++ on your own images: see ../_base_/datasets/folder.py for what to set.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_folder-512x512.py',
    '../_base_/methods/st_plus_plus.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 1]
mutual = dict(supervised=dict(max_iters=1000), round=dict(max_iters=2000))
