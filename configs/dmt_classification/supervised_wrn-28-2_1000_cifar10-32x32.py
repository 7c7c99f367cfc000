# Labeled images only: 2120 passes over the 1000 labels, as published, in batches of 512.
_base_ = [
    '../_base_/classification_runtime.py',
    '../_base_/classification/wrn-28-2.py',
    '../_base_/classification/cifar10.py',
    '../_base_/classification/schedule_sgd.py',
]
