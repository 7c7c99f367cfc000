# ST on the small MSRC-21 benchmark of docs/results.md: 1800 steps of 8 images in all, as many as the
# labeled-only baseline, though the last network is trained for 1200 of them.
_base_ = ['../supervised/deeplabv3plus_mobilenetv2_msrc21-96x96.py', '../_base_/methods/st.py']

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [4, 4]
mutual = dict(supervised=dict(max_iters=600), round=dict(max_iters=1200))
