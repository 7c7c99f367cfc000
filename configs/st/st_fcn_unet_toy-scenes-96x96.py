# ST on the generated scenes: python examples/toy_scenes.py data/toy_scenes
_base_ = ['../supervised/fcn_unet_toy-scenes-96x96.py', '../_base_/methods/st.py']

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [4, 4]
mutual = dict(supervised=dict(max_iters=400), round=dict(max_iters=600))
