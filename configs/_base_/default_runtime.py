default_scope = 'mmseg'
custom_imports = dict(imports=['mmdmt'], allow_failed_imports=False)

# Safe loading, exact resuming, distributed training also on CPUs.
runner_type = 'mmdmt.SemiRunner'
# Files that may be unpickled without restrictions; all others load with weights_only.
trusted_checkpoints = []

env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
randomness = dict(seed=0, deterministic=False)

default_hooks = dict(
    runtime_info=dict(type='mmdmt.DeferredInfoHook'),  # reads losses when they are logged
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='mmdmt.SafeCheckpointHook',
        by_epoch=False,
        interval=2000,
        max_keep_ckpts=2,
        save_best='auto',  # on the validation set, by mIoU; one file of weights alone
    ),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    iter_seed=dict(type='mmdmt.IterSeedHook'),
    method=dict(type='mmdmt.MethodHook'),  # moves teachers; nothing for plain models
    finite=dict(type='mmdmt.FiniteHook'),  # stops a run that has diverged
    dataset_check=dict(type='mmdmt.DatasetCheckHook'),
    unpredicted_classes=dict(type='mmdmt.UnpredictedClassHook'),
    visualization=dict(type='SegVisualizationHook', draw=False),
)

vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False

tta_model = dict(type='mmdmt.MeanTTAModel')
