# The protocol that UniMatch and most work since share on Cityscapes, for any online method: 240
# passes over the unlabeled images with 8 labeled and 8 unlabeled ones in a step, on all devices
# together (`batch_size = 16` on one device, 4 on each of four), at 801x801.
#
# The default is that of 1/8; others: --cfg-options max_iters=83520 labeled_list=... (1/16)
_base_ = './schedule_40k_sgd.py'

unimatch_iters = {
    # 1/16, 1/8, 1/4 and 1/2 of the 2975 images, by the number of labels.
    labels: 240 * ((2975 - int(labels)) // 8)
    for labels in ('186', '372', '744', '1488')
}
max_iters = unimatch_iters['372']  # 78000
length_settings = dict(max_iters=dict(default=max_iters))
optim_wrapper = dict(optimizer=dict(lr=0.005, weight_decay=1e-4))
train_cfg = dict(val_interval=max_iters // 8)
