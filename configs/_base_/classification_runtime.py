# What runs of mmpretrain classifiers need beside default_runtime.py.
_base_ = './default_runtime.py'

default_scope = 'mmpretrain'
custom_imports = dict(imports=['mmdmt', 'mmdmt.classification'], allow_failed_imports=False)

default_hooks = dict(
    # The average of the weights is what is validated, stored and labels. As published, it is nearly
    # the last iterate: momentum=0.001, buffers='copy', warmup=False.
    ema=dict(type='EMAHook', ema_type='mmdmt.EMAModel', momentum=0.999, buffers='ema', warmup=True),
    visualization=dict(_delete_=True, type='VisualizationHook', enable=False),
)
visualizer = dict(
    _delete_=True,
    type='UniversalVisualizer',
    vis_backends=[dict(type='LocalVisBackend')],
)
tta_model = dict(_delete_=True, type='AverageClsScoreTTA')
