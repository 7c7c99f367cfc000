# FixMatch with an EMA teacher and DINOv2-B on PASCAL VOC 2012 with SBD, as published beside UniMatch V2.
_base_ = './fixmatch-v2_dpt_dinov2-small_pascal_voc12-518x518.py'

encoder = dict(model_name='vit_base_patch14_dinov2.lvd142m')
head = dict(in_channels=768, channels=128, project_channels=(96, 192, 384, 768))
model = dict(segmentor=dict(backbone=encoder, decode_head=head))
