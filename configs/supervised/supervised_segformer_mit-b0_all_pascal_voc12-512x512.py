_base_ = [
    '../_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/pascal_voc12_aug_labeled.py',
    '../_base_/schedules/schedule_40k_adamw.py',
    '../_base_/default_runtime.py',
]

crop_size = (512, 512)
labeled_list = 'ImageSets/Segmentation/trainaug.txt'
data_preprocessor = dict(size=_base_.crop_size)
model = dict(
    data_preprocessor=data_preprocessor,
    decode_head=dict(num_classes=21),
)
