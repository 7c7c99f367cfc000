# PrevMatch on UniMatch: copies of the student from earlier in the run label besides. Copies are
# taken after each pass over the unlabeled images and kept on the CPU; `every='best'` takes them on
# the best validations, as published.
_base_ = './unimatch.py'

method = dict(
    previous=dict(every='epoch', keep=8, max_labelers=3, skip=0, threshold=0.9, device='cpu')
)
