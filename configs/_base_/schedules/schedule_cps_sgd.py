# The schedule of Cross Pseudo Supervision on PASCAL VOC 2012: about 39,700 steps of 8 labeled and 8
# unlabeled images whatever the number of labels (32, 34, 40 and 60 passes with 1/16 to 1/2), no
# weight decay on norms and biases, one rate for backbone and head.
#
# The released code configures 0.0025 and multiplies it by its 4 devices, but divides its losses by
# the number of devices before the gradients are averaged over them: what its SGD does on the mean
# loss of 16 images is 0.0025, with the weight decay of 1e-4, which is not divided, 4 times as high.
_base_ = './schedule_40k_sgd.py'

max_iters = 39680
length_settings = dict(max_iters=dict(default=max_iters))
optim_wrapper = dict(
    optimizer=dict(lr=0.0025, weight_decay=4e-4),
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
train_cfg = dict(val_interval=max_iters // 8)
