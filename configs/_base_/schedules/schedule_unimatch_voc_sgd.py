# The protocol that UniMatch and most work since share on PASCAL VOC 2012, for any online method: 80
# passes over the unlabeled images with 8 labeled and 8 unlabeled ones in a step, on all devices
# together (`batch_size = 16` on one device, 4 on each of four), at 321x321 or 513x513.
#
# A pass is floor(unlabeled / 8) steps, so the length depends on the labels. For others than 1/8:
#   --cfg-options max_iters=104880 labeled_list=splits/92/labeled.txt \
#       unlabeled_list=splits/92/unlabeled.txt
_base_ = './schedule_40k_sgd.py'

unimatch_iters = {
    # Published lists, by the number of labels: "classic", and 1/16 to 1/2 of the 10582 images.
    labels: 80 * ((10582 - int(labels)) // 8)
    for labels in ('92', '183', '366', '732', '1464', '662', '1323', '2646', '5291')
}
max_iters = unimatch_iters['1323']  # 92560, also with the 1322 labels of DMT's 1/8
length_settings = dict(max_iters=dict(default=max_iters))
optim_wrapper = dict(
    optimizer=dict(lr=0.001, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
train_cfg = dict(val_interval=max_iters // 8)
