# Cross Teacher Training between two architectures on PASCAL VOC 2012: a DeepLabV3+ R50 (l) and a
# SegFormer B1 (r) teach each other.
#
# Their features have different channels, so they are compared in a projection. Both share one AdamW;
# the longest key that a parameter's name contains decides its rate, so keys that begin with a
# student's name win over those for both. The rates are this project's choice.
from mmengine import Config

_base_ = [
    '../supervised/deeplabv3plus_r50_pascal_voc12-321x321.py',
    '../_base_/methods/cross_teacher.py',
]

source_ratio = [1, 1]
segformer = Config.fromfile('{{ fileDirname }}/../_base_/models/segformer_mit-b1.py').model
segformer.decode_head.num_classes = _base_.num_classes
segformer.data_preprocessor.size = _base_.crop_size
contrast = dict(_base_.method.contrast, projection=dict(channels=256))
method = dict(_base_.method, contrast=contrast)
model = dict(_delete_=True, segmentor=dict(l=_base_.model, r=segformer), **method)
optim_wrapper = dict(
    _delete_=True,
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(
        custom_keys={
            'pos_block': dict(decay_mult=0.0),
            'norm': dict(decay_mult=0.0),
            'head': dict(lr_mult=10.0),
            'student_l.backbone': dict(lr_mult=2.0),
        }
    ),
)
del Config  # all names of this file become settings
