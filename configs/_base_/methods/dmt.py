# Dynamic mutual training: two members label for each other, round after round, with more pixels in
# each. A leaf adds the runner and the lengths.
#
# Gammas that DMT published by dataset; those of ADE20K are as for Cityscapes, not tuned.
gammas = dict(
    pascal_voc12=dict(gamma1=5.0, gamma2=5.0),
    cityscapes=dict(gamma1=3.0, gamma2=3.0),
    ade20k=dict(gamma1=3.0, gamma2=3.0),
)
mutual = dict(
    members=[dict(name='a', seed=1), dict(name='b', seed=2)],
    ratios=[0.2, 0.4, 0.6, 0.8, 1.0],
    pseudo_loss=dict(type='mmdmt.DynamicMutualLoss', **gammas['pascal_voc12']),
)
