# CBST, as DMT's ablation has it: one member labels for itself, thresholds for each class choose the
# pixels, and each of them counts as much as a labeled one.
_base_ = './dst_cbc.py'

mutual = dict(pseudo_loss=dict(gamma=0.0))
