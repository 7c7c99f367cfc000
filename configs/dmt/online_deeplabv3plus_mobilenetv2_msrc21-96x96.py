# DMT's ablation "on-line": one member learns what it predicts itself, in the same step, where it is
# sure. One round as long as two; the labels that are stored before it only say where images are.
_base_ = './dst-cbc_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(
    ratios=[1.0],
    round=dict(max_iters=1200),
    pseudo_loss=dict(_delete_=True, type='mmdmt.OnlinePseudoLoss', threshold=0.9),
)
