# DMT with DeepLabV3+ R50 on PASCAL VOC 2012, one label in eight images. A member takes
# 17560 + 5 x 15000 = 92560 steps of 16 images, as many as the labeled-only baseline and the online
# methods. Gammas, ratios and the shares of a batch are those that DMT published for this dataset with
# DeepLabV2, and the learning rate of a round is half that of round 0 as there.
_base_ = [
    '../supervised/deeplabv3plus_r50_pascal_voc12-321x321.py',
    '../_base_/methods/dmt_subsets.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = _base_.runs.pascal_voc12.source_ratio
length = dict(supervised=dict(max_iters=17560), round=dict(max_iters=15000, lr=0.0005))
mutual = dict(_base_.runs.pascal_voc12.mutual, **length)
