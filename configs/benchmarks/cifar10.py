# DMT and curriculum labeling on CIFAR-10 with 250 labels, at a size for CPUs: a quarter of an hour of
# one core for a run. A fold is a draw of the labels
# (python tools/misc/split_classes.py --dataset CIFAR10 ...).
labels = ['250']
folds = [1]
lists = 'splits/{labels}/seed_{fold}'
seeds = [0, 1, 2]
# Three equal stages, each long enough for most of what labels alone can teach. Every class gets its
# share of the pseudo-labels: selection over all classes together prefers the easy ones.
budget = dict(student_steps=12000)
stages = {'mutual.round.max_iters': 900, 'mutual.labeling.selection': 'class'}
metric = 'aAcc'  # share of correct images
select_by = 'accuracy/top1'
end = 'wrn-16-1_4000_cifar10-16x16.py'
methods = dict(
    labeled_only=dict(config=f'../dmt_classification/supervised_{end}'),
    dmt=dict(config=f'../dmt_classification/dmt_{end}', options=stages),
    curriculum=dict(config=f'../dmt_classification/cl_{end}', options=stages),
)
quick = dict(seeds=[0], budget=dict(student_steps=400))
del end, stages
