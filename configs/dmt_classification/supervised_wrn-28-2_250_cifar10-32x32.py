# The length is published for 1000 labels only and is the same here.
_base_ = './supervised_wrn-28-2_1000_cifar10-32x32.py'

labeled_list = 'splits/250/seed_1/labeled.txt'
unlabeled_list = 'splits/250/seed_1/unlabeled.txt'
