# DMT's ablation "naive": members label for each other, and a pixel counts by the learning member's
# probability of the label alone, whether the two agree or not.
_base_ = './dmt_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(pseudo_loss=dict(_delete_=True, type='mmdmt.DynamicSelfLoss', gamma=1.0))
