# Mean Teacher as tools/demo.py trains it, for runs of a thousand steps from scratch: labels first, since
# classes that are not learned yet would be taught away; no more distortion of colors than the sources
# have; a teacher that averages over fifty steps and so keeps up.
#   python examples/toy_scenes.py data/toy_scenes --style clear --labeled 6
_base_ = [
    '../supervised/fcn_unet_toy-scenes-96x96.py',
    '../_base_/methods/mean_teacher.py',
]

source_ratio = [1, 1]
method = dict(_base_.method, strong=None, threshold=0.7, rampup_iters=500, ema=dict(momentum=0.98))
model = dict(_delete_=True, segmentor=_base_.model, **method)
