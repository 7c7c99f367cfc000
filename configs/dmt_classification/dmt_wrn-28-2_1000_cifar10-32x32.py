# DMT on CIFAR-10 as published for 1000 labels, but with a correct average of the weights
# (default_hooks.ema of ../_base_/classification_runtime.py) and batch-norm statistics of the mixed
# images alone (model.update_bn_twice).
_base_ = './supervised_wrn-28-2_1000_cifar10-32x32.py'

# The steps follow from the sizes of the sets: a round is 750 passes over the soft-labeled images
# that are selected.
num_unlabeled = 50000 - 200 - 1000
labeled_per_batch, pseudo_per_batch = 16, 496
ratios = [0.2, 0.4, 0.6, 0.8, 1.0]
round_iters = [750 * -(-int(ratio * num_unlabeled) // pseudo_per_batch) for ratio in ratios]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [labeled_per_batch, pseudo_per_batch]
mutual = dict(
    task='classification',
    members=[dict(name='a', seed=1)],  # it labels for its successor
    ratios=ratios,
    round=dict(
        max_iters=round_iters,
        lr=0.1,
        from_scratch=True,
    ),
    pseudo_loss=dict(gamma1=4.0, gamma2=4.0),
)
