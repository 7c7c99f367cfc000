# Cross Pseudo Supervision with CutMix on the generated scenes: python examples/toy_scenes.py data/toy_scenes
_base_ = [
    '../supervised/fcn_unet_toy-scenes-96x96.py',
    '../_base_/methods/cps_cutmix.py',
]

source_ratio = [1, 1]
model = dict(_delete_=True, segmentor=_base_.model, **_base_.method)
