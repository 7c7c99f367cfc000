_base_ = './unimatch-v2_dpt_dinov2-small_ade20k-518x518.py'

encoder = dict(model_name='vit_large_patch14_dinov2.lvd142m', out_indices=(4, 11, 17, 23))
head = dict(in_channels=1024, channels=256, project_channels=(256, 512, 1024, 1024))
model = dict(segmentor=dict(backbone=encoder, decode_head=head))
