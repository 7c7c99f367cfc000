# WRN-28-2 for images of 32x32: pre-activation, 32, 64 and 128 channels, no dropout; 1.47 million
# parameters with ten classes. Normalization of CIFAR-10 as published with DMT, for RGB images.
model = dict(
    type='mmdmt.MutualClassifier',
    data_preprocessor=dict(
        type='ClsDataPreprocessor',
        mean=[0.49137 * 255, 0.48235 * 255, 0.44667 * 255],
        std=[0.24706 * 255, 0.24353 * 255, 0.26157 * 255],
        to_rgb=False,
    ),
    backbone=dict(type='mmdmt.WideResNet', depth=28, widen_factor=2),
    neck=dict(type='GlobalAveragePooling'),
    # Initialized as torch does it, std 0.05, as published; mmpretrain's default is std 0.01.
    head=dict(type='LinearClsHead', num_classes=10, in_channels=128, init_cfg=None),
    # Labeled images only; the rounds of mutual training set the gammas.
    gamma1=0.0,
    gamma2=0.0,
    mixup_alpha=0.75,
    update_bn_twice=False,
)
