# DMT with DeepLabV3+ R50 on PASCAL VOC 2012, one label in eight images. A member takes 10000 + 5 x 6000 =
# 40000 steps of 8 images; the labeled-only baseline as long: `max_iters=40000 batch_size=8`.
# Gammas, ratios and batch are those that DMT published for this dataset with DeepLabV2, and the
# learning rate of a round is half that of round 0 as there.
_base_ = [
    '../supervised/deeplabv3plus_r50_pascal_voc12-321x321.py',
    '../_base_/methods/dmt_subsets.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
batch_size = 8
source_ratio = _base_.runs.pascal_voc12.source_ratio
mutual = dict(_base_.runs.pascal_voc12.mutual, round=dict(max_iters=6000, lr=0.0005))
