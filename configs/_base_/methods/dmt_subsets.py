# DMT of members that start from the same weights: round 0 makes them different by two subsets of the
# labels (split_dataset.py --difference-maximized), the rounds use all labels.
_base_ = './dmt.py'

mutual = dict(
    members=[
        dict(name='left', seed=1, labeled_list='splits/1_8/fold_0/left.txt'),
        dict(name='right', seed=2, labeled_list='splits/1_8/fold_0/right.txt'),
    ],
)
