# DMT with flipped labels (the ablation "flip"): where the learning member is more confident than
# the label, it learns its own class, weighted by the doubt in the label, instead of nothing.
_base_ = './dmt_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(pseudo_loss=dict(conflict='flip'))
