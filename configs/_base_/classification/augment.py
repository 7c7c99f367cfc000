# One random transform for each image, with a random magnitude of 1 to 10, from the list that was used
# for the published figures of DMT on CIFAR-10. Its translations (up to 100 pixels) and Cutout (up to
# 40) are made for images of 32x32; other sizes take the list of RandAugment's paper, with Cutout.
rand_augment = dict(type='mmdmt.RandAugment', policies='released', num_policies=1, max_magnitude=10)
