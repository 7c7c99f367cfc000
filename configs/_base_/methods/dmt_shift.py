# DMT where the labels are of another dataset: two members that differ in their seeds, and as many steps
# in all as the labeled-only baselines take. Gammas are those of Cityscapes, not tuned.
_base_ = './dmt.py'

mutual = dict(
    supervised=dict(max_iters=20000),
    round=dict(max_iters=4000),
    pseudo_loss=_base_.gammas.cityscapes,
)
