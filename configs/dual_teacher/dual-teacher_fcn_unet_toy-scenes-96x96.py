# Dual Teacher on the generated scenes, for the coupling curves of docs/dual_teacher.md.
#   python examples/toy_scenes.py data/toy_scenes
_base_ = [
    '../supervised/fcn_unet_toy-scenes-96x96.py',
    '../_base_/methods/dual_teacher.py',
]

source_ratio = [1, 1]
method = dict(
    _base_.method,
    shift_length=40,
    threshold=0.9,
    rampup_iters=200,
    ema=dict(momentum=0.95),
    sub_model=None,  # a U-Net has no residual blocks
)
custom_hooks = [dict(type='mmdmt.CouplingHook', interval=5)]
default_hooks = dict(logger=dict(interval=5))
model = dict(_delete_=True, segmentor=_base_.model, **method)
