# DMT with a small network on CamVid, one label in eight images. A member takes 1500 + 5 x 500 = 4000
# steps, as many as the labeled-only baseline.
_base_ = [
    '../supervised/deeplabv3plus_mobilenetv2_camvid-360x480.py',
    '../_base_/methods/dmt.py',
]

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 1]
mutual = dict(
    supervised=dict(max_iters=1500),
    # Members trained on 45 images have little confidence: half of a batch is labeled, and
    # gammas are small.
    round=dict(max_iters=500),
    pseudo_loss=dict(gamma1=1.0, gamma2=1.0),
)
