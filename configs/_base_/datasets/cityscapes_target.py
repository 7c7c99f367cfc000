# Cityscapes as the target of a domain shift: images at 1024x512, crops of 512x512, scored at full size.
# All 2975 labels of the training images are the upper bound of a shift. The layout is that of
# cityscapes.py, with its train.txt.
_base_ = './cityscapes_half.py'

labeled_list = 'train.txt'
unlabeled_list = 'train.txt'
crop_size = (512, 512)
batch_size = 4
target_settings = dict(crop_size=dict(default=crop_size))  # models are written with this one

# Labels keep their size.
val_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
test_dataloader = dict(dataset=dict(pipeline=_base_.test_pipeline))
