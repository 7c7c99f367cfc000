# PrevMatch, on UniMatch, with DeepLabV3+ on Xception-65 on COCO 2017: five copies, none in the first
# five passes.
_base_ = '../unimatch/unimatch_deeplabv3plus_xception65_coco81-513x513.py'

skip = 5 * ((118287 - 3697) // 8)
previous = dict(every='epoch', keep=5, max_labelers=3, skip=skip, threshold=0.9, device='cpu')
model = dict(previous=previous)
