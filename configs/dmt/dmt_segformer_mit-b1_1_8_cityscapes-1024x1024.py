# DMT with SegFormer B1 on Cityscapes, one label in eight images. A member takes 20000 + 5 x 12000 =
# 80000 steps, as many as the labeled-only baseline.
# Gammas and ratios are those that DMT published for this dataset with DeepLabV2; full resolution,
# evaluation in windows.
_base_ = [
    '../supervised/segformer_mit-b1_cityscapes-1024x1024.py',
    '../_base_/methods/dmt_subsets.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = _base_.runs.cityscapes.source_ratio
mutual = _base_.runs.cityscapes.mutual
