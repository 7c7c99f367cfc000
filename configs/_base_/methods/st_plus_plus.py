# ST++: the first fresh network learns only from the half of the images of which checkpoints of the
# labeled-only network agree most; it labels the other half, and the next one learns from all.
_base_ = './st.py'

mutual = dict(ratios=[1.0, 1.0], round=dict(images=['reliable', 'all']))
