# The lengths of UniMatch V2: passes over the unlabeled images, with as many labeled and unlabeled
# ones in a step, on all devices together, as published (`batch_size` counts both).
_base_ = './schedule_40k_dino.py'

unimatch_v2_iters = {
    # By the number of labels; "classic" and blended ones of VOC.
    dataset: {labels: passes * ((total - int(labels)) // unlabeled) for labels in numbers.split()}
    for dataset, total, unlabeled, passes, numbers in (
        ('pascal_voc12', 10582, 16, 60, '92 183 366 732 1464 662 1323 2646'),
        ('cityscapes', 2975, 8, 180, '186 372 744 1488'),
        ('ade20k', 20210, 8, 60, '316 631 1263 2526 5052'),
        ('coco81', 118287, 16, 20, '232 463 925 1849 3697'),
    )
}
