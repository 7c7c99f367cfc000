# DMT and curriculum labeling on CIFAR-10 with 4000 labels, at a size for CPUs. A fold is a draw of
# the labels (python tools/misc/split_classes.py --dataset CIFAR10 ...).
labels = ['4000']
folds = [1]
lists = 'splits/{labels}/seed_{fold}'
seeds = [0, 1, 2]
budget = dict(student_steps=3600)
metric = 'aAcc'  # share of correct images
select_by = 'accuracy/top1'
end = 'wrn-16-1_4000_cifar10-16x16.py'
methods = dict(
    labeled_only=dict(config=f'../dmt_classification/supervised_{end}'),
    dmt=dict(config=f'../dmt_classification/dmt_{end}'),
    curriculum=dict(config=f'../dmt_classification/cl_{end}'),
)
quick = dict(seeds=[0], budget=dict(student_steps=400))
del end
