# DMT's ablation "online": one member learns what it predicts itself, in the same step, where it is
# confident. One round as long as two; the stored labels only name the images.
_base_ = './dst-cbc_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(
    ratios=[1.0],
    round=dict(max_iters=1200),
    pseudo_loss=dict(_delete_=True, type='mmdmt.OnlinePseudoLoss', threshold=0.9),
)
