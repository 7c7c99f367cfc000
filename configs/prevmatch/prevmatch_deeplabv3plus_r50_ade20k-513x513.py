# PrevMatch, on UniMatch, with DeepLabV3+ R50 on ADE20K: five copies, none in the first five passes.
_base_ = ['../supervised/deeplabv3plus_r50_ade20k-513x513.py', '../_base_/methods/prevmatch.py']

padding = 'black'
source_ratio = [1, 1]
previous = dict(_base_.method.previous, keep=5, skip=5 * ((20210 - 2526) // 8))
model = dict(_delete_=True, segmentor=_base_.model, **dict(_base_.method, previous=previous))
