# DMT on CIFAR-10 with 250 labels. Shares of a batch and passes are those published for 1000.
_base_ = './dmt_wrn-28-2_1000_cifar10-32x32.py'

num_unlabeled = 50000 - 200 - 250
labeled_per_batch, pseudo_per_batch = 16, 496
round_iters = [750 * -(-int(ratio * num_unlabeled) // pseudo_per_batch) for ratio in _base_.ratios]

labeled_list = 'splits/250/seed_1/labeled.txt'
unlabeled_list = 'splits/250/seed_1/unlabeled.txt'
mutual = dict(round=dict(max_iters=round_iters, source_ratio=[labeled_per_batch, pseudo_per_batch]))
