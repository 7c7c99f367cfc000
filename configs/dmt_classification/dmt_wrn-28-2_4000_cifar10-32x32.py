# DMT on CIFAR-10 with 4000 labels. The shares of a batch are the published ones, the passes
# those published for 1000 labels.
_base_ = './dmt_wrn-28-2_1000_cifar10-32x32.py'

num_unlabeled = 50000 - 200 - 4000
labeled_per_batch, pseudo_per_batch = 64, 448
round_iters = [750 * -(-int(ratio * num_unlabeled) // pseudo_per_batch) for ratio in _base_.ratios]

labeled_list = 'splits/4000/seed_1/labeled.txt'
unlabeled_list = 'splits/4000/seed_1/unlabeled.txt'
source_ratio = [labeled_per_batch, pseudo_per_batch]
mutual = dict(round=dict(max_iters=round_iters))
