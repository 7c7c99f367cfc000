# Dynamic self-training (DST-CBC): one member labels for itself, weighted by its own trust in its
# earlier labels. Published gammas are 9 (VOC 1/106, 1/20) and 2 (the released code's default);
# members trained on 34 images have too little confidence for 9. Steps, batches and the rule that
# selects pixels are those of DMT's file, so that only the loss and the members differ; the published
# rule is `mutual.labeling.rule=threshold_ratio`, the published choice `mutual.select=best_so_far`.
_base_ = './dmt_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

mutual = dict(
    members=[dict(name='a', seed=1)],
    pseudo_loss=dict(_delete_=True, type='mmdmt.DynamicSelfLoss', gamma=2.0),
)
