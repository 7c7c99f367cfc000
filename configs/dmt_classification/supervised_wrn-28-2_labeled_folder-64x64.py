# Labeled images only, your own: see ../_base_/classification/folder.py for what to set.
_base_ = [
    '../_base_/classification_runtime.py',
    '../_base_/classification/wrn-28-2.py',
    '../_base_/classification/folder.py',
    '../_base_/classification/schedule_sgd.py',
]

max_iters = 20000
length_settings = dict(max_iters=dict(default=max_iters))
model = dict(data_preprocessor=dict(to_rgb=True))
optim_wrapper = dict(optimizer=dict(lr=0.03))
