# DST-CBC: one member labels for itself, and a pixel counts by the trust that the member has in its
# earlier label. Published gammas are 9 on PASCAL VOC and 2, the released code's default, which suits
# networks that few images taught.
_base_ = './dmt.py'

mutual = dict(
    members=[dict(name='a', seed=1)],
    pseudo_loss=dict(_delete_=True, type='mmdmt.DynamicSelfLoss', gamma=2.0),
)
