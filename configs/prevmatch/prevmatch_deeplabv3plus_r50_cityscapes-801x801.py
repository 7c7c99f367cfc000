# PrevMatch, on UniMatch, with DeepLabV3+ R50 on Cityscapes, where all labels count. Published are
# 200,000 pixels of the 4 labeled images of a device at least.
_base_ = '../unimatch/unimatch_deeplabv3plus_r50_cityscapes-801x801.py'

previous = dict(every='epoch', keep=8, max_labelers=3, skip=0, threshold=0.0, device='cpu')
ohem = dict(decode_head=dict(loss_decode=dict(min_kept=50000)))
model = dict(previous=previous, segmentor=ohem)
