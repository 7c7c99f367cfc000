# One random transform for each image, with a random magnitude of 1 to 10, as published with DMT for
# CIFAR-10: the 14 transforms of RandAugment (Cubuk et al., 2020) and Cutout of up to half an image
# of 32x32. Of the published list it is known that Cutout is in it.
rand_augment = dict(
    type='mmdmt.RandAugment', policies='paper', cutout=16, num_policies=1, max_magnitude=10
)
