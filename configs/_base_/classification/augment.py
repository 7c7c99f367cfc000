# One random transform for each image, with a random magnitude of 1 to 10, as published with DMT for
# CIFAR-10. The list is that of RandAugment (Cubuk et al., 2020) with Cutout; mmpretrain would apply
# each only to half of the images.
rand_augment = dict(
    type='mmdmt.RandAugment',
    num_policies=1,
    max_magnitude=10,
    total_level=10,
    policies=[
        dict(type='AutoContrast', prob=1.0),
        dict(type='Equalize', prob=1.0),
        dict(type='Rotate', magnitude_range=(0, 30), prob=1.0),
        dict(type='Posterize', magnitude_range=(8, 4), prob=1.0),
        dict(type='Solarize', magnitude_range=(256, 0), prob=1.0),
        dict(type='ColorTransform', magnitude_range=(0, 0.9), prob=1.0),
        dict(type='Contrast', magnitude_range=(0, 0.9), prob=1.0),
        dict(type='Brightness', magnitude_range=(0, 0.9), prob=1.0),
        dict(type='Sharpness', magnitude_range=(0, 0.9), prob=1.0),
        dict(type='Shear', magnitude_range=(0, 0.3), direction='horizontal', prob=1.0),
        dict(type='Shear', magnitude_range=(0, 0.3), direction='vertical', prob=1.0),
        dict(type='Translate', magnitude_range=(0, 0.3), direction='horizontal', prob=1.0),
        dict(type='Translate', magnitude_range=(0, 0.3), direction='vertical', prob=1.0),
        dict(type='Cutout', magnitude_range=(0, 16), prob=1.0),
    ],
)
