# DMT with SegFormer B1 on ADE20K, one label in eight images. A member takes 10000 + 5 x 6000 =
# 40000 steps, as many as the labeled-only baseline.
# Gammas and batch as for Cityscapes; not tuned.
_base_ = [
    '../supervised/segformer_mit-b1_ade20k-512x512.py',
    '../_base_/methods/dmt_subsets.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = _base_.runs.ade20k.source_ratio
mutual = _base_.runs.ade20k.mutual
