# Dual Teacher as tools/demo.py trains it, for a thousand steps on scenes of a clear day with 6 labels:
#   python examples/toy_scenes.py data/toy_scenes --style clear --labeled 6
_base_ = './dual-teacher_fcn_unet_toy-scenes-96x96.py'

model = dict(rampup_iters=500)  # half of the run, as there
custom_hooks = []
default_hooks = dict(logger=dict(interval=50))
