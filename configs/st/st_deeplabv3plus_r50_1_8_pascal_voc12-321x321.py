# ST with DeepLabV3+ R50 on PASCAL VOC 2012, 1322 labels; docs/st.md says how to take others.
_base_ = ['../supervised/deeplabv3plus_r50_pascal_voc12-321x321.py', '../_base_/methods/st.py']

runner_type = 'mmdmt.MutualTrainingRunner'
source_ratio = [1, 1]
mutual = _base_.st_runs.pascal_voc12['1322'].st
