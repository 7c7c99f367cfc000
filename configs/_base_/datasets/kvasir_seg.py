# Kvasir-SEG: 1000 endoscopic images of many sizes, one class (polyp) and background.
#
# data_root/                                       masks and lists by
#   images/*.jpg                                   tools/dataset_converters/kvasir_seg.py
#   masks_png/*.png                                0 background, 1 polyp
#   train.txt, val.txt                             880 and 120 images, published
#   splits/1_8/fold_0/{labeled,unlabeled}.txt      from tools/misc/split_dataset.py --list train.txt
#
# Every setting of `settings` may be set once, in a child config or by --cfg-options, such as
# data_root=/data/mine (docs/configs.md). A list may also be an absolute path.
_base_ = './folder.py'

data_root = 'data/Kvasir-SEG'
labeled_list = 'splits/1_8/fold_0/labeled.txt'
unlabeled_list = 'splits/1_8/fold_0/unlabeled.txt'
val_list = 'val.txt'
image_size = (480, 480)  # (width, height) that images fit into before random resizing
crop_size = (352, 352)
metainfo = dict(classes=('background', 'polyp'), palette=[[0, 0, 0], [220, 60, 60]])
kvasir_settings = dict(crop_size=dict(default=crop_size))  # models are written with this one

train_dataloader = dict(
    dataset=dict(
        datasets=[
            dict(
                _base_.labeled_dataset,
                data_prefix=dict(img_path='images', seg_map_path='masks_png'),
            ),
            dict(_base_.unlabeled_dataset, data_prefix=dict(img_path='images')),
        ]
    )
)
val_dataloader = dict(dataset=dict(data_prefix=dict(img_path='images', seg_map_path='masks_png')))
test_dataloader = dict(dataset=dict(data_prefix=dict(img_path='images', seg_map_path='masks_png')))
val_evaluator = dict(iou_metrics=['mIoU', 'mDice'])
test_evaluator = dict(iou_metrics=['mIoU', 'mDice'])
