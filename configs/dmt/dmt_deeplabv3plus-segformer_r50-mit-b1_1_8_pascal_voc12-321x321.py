# DMT between two architectures on PASCAL VOC 2012, one label in eight images: a DeepLabV3+ R50 and a
# SegFormer B1 label for each other. Different networks need no different subsets of the labels.
#
# A member's `cfg_options` may change anything; here its network and its optimizer.
from mmengine import Config

_base_ = './dmt_deeplabv3plus_r50_1_8_pascal_voc12-321x321.py'

segformer = Config.fromfile('{{ fileDirname }}/../_base_/models/segformer_mit-b1.py').model
segformer.decode_head.num_classes = _base_.num_classes
segformer.data_preprocessor.size = _base_.crop_size
adamw = Config.fromfile('{{ fileDirname }}/../_base_/schedules/schedule_40k_adamw.py').optim_wrapper
options = dict(model=dict(_delete_=True, **segformer), optim_wrapper=dict(_delete_=True, **adamw))
mutual = dict(
    members=[
        dict(name='deeplab', seed=1),
        dict(name='segformer', seed=2, cfg_options=options),
    ],
    round=dict(_delete_=True, max_iters=15000),  # no `lr`: each member has its own
)
del Config  # all names of this file become settings
