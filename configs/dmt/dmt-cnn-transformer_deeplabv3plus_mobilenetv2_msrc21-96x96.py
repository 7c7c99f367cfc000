# DMT of two architectures: a CNN and a transformer label for each other. Member b replaces the
# model, and takes the learning rate that transformers are used to.
from mmengine import Config

_base_ = './dmt_deeplabv3plus_mobilenetv2_msrc21-96x96.py'

segformer = Config.fromfile('{{ fileDirname }}/../_base_/models/segformer_mit-b0.py').model
segformer.decode_head.num_classes = _base_.num_classes
segformer.data_preprocessor.size = _base_.crop_size
mutual = dict(
    members=[
        dict(name='a', seed=1),
        dict(
            name='b',
            seed=2,
            cfg_options={
                'model': dict(_delete_=True, **segformer),
                'optim_wrapper.optimizer.lr': 1e-4,
            },
        ),
    ],
)
del Config  # all names of this file become settings
