# Labeled images of SYNTHIA-RAND-CITYSCAPES (9,400 of 1280x760), unlabeled ones of Cityscapes train,
# scored on Cityscapes val at full size.
#
# labeled_root/                      made by tools/dataset_converters/synthia.py
#   RGB/*.png, GT/LABELS/*_labelTrainIds.png, train.txt
# data_root/                         of Cityscapes, as in cityscapes.py, with its train.txt
#
# SYNTHIA has no terrain, truck and train: `mIoU` is the mean over the other 16 classes, `mIoU_13`
# that without wall, fence and pole too, as published.
_base_ = './gta5_cityscapes.py'

labeled_root = 'data/RAND_CITYSCAPES'
labeled_image_size = (1280, 760)
train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                _base_.train_dataloader.dataset.datasets[0],
                data_prefix=dict(img_path='RGB', seg_map_path='GT/LABELS'),
            ),
            _base_.unlabeled_dataset,
        ]
    )
)

classes = [
    'road', 'sidewalk', 'building', 'wall', 'fence', 'pole', 'traffic light', 'traffic sign',
    'vegetation', 'sky', 'person', 'rider', 'car', 'bus', 'motorcycle', 'bicycle',
]  # fmt: skip
val_evaluator = dict(
    _delete_=True,
    type='mmdmt.IoUOfClasses',
    iou_metrics=['mIoU'],
    classes=classes,
    also=dict(mIoU_13=[name for name in classes if name not in ('wall', 'fence', 'pole')]),
)
test_evaluator = val_evaluator
