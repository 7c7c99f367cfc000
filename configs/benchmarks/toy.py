# All methods on the generated scenes of the demo, with five draws of the labels. On two idle CPU
# cores, estimated from a step of the demo (2.5 ms for a bare pass):
#   python tools/benchmark.py configs/benchmarks/toy.py                   two to three hours
#   python tools/benchmark.py configs/benchmarks/toy.py --quick           under a quarter of an hour
# The scenes are the same for all seeds and are painted when they are missing; a seed is another
# draw of the labeled ones, and another start.
dataset = dict(toy_scenes=dict(root='data/toy_scenes'))
lists = 'splits/benchmark_{labels}/seed_{seed}'
labels = ['24']
seeds = [0, 1, 2, 3, 4]
budget = dict(student_steps=1000)
# Networks that are trained from scratch for so few steps fill few banks of features.
few_steps = {
    'model.contrast.anchors_per_class': 32,
    'model.contrast.bank.size': 64,
    'model.contrast.bank.threshold': 0.8,
    'model.contrast.start': 0.5,
}
methods = dict(
    labeled_only=dict(config='../supervised/fcn_unet_toy-scenes-96x96.py'),
    dmt=dict(config='../dmt/dmt_fcn_unet_toy-scenes-96x96.py'),
    st=dict(config='../st/st_fcn_unet_toy-scenes-96x96.py'),
    st_plus_plus=dict(config='../st/st-plus-plus_fcn_unet_toy-scenes-96x96.py'),
    mean_teacher=dict(config='../mean_teacher/mean-teacher_fcn_unet_toy-scenes-96x96.py'),
    fixmatch=dict(config='../fixmatch/fixmatch_fcn_unet_toy-scenes-96x96.py'),
    cutmix_seg=dict(config='../cutmix_seg/cutmix-seg_fcn_unet_toy-scenes-96x96.py'),
    cps=dict(config='../cps/cps_fcn_unet_toy-scenes-96x96.py'),
    cps_cutmix=dict(config='../cps/cps-cutmix_fcn_unet_toy-scenes-96x96.py'),
    unimatch=dict(config='../unimatch/unimatch_fcn_unet_toy-scenes-96x96.py'),
    unimatch_v2=dict(config='../unimatch_v2/unimatch-v2_fcn_unet_toy-scenes-96x96.py'),
    augseg=dict(config='../augseg/augseg_fcn_unet_toy-scenes-96x96.py'),
    prevmatch=dict(config='../prevmatch/prevmatch_fcn_unet_toy-scenes-96x96.py'),
    u2pl=dict(config='../u2pl/u2pl_fcn_unet_toy-scenes-96x96.py'),
    dual_teacher=dict(config='../dual_teacher/dual-teacher_fcn_unet_toy-scenes-96x96.py'),
    cross_teacher=dict(
        config='../cross_teacher/cross-teacher_fcn_unet_toy-scenes-96x96.py', options=few_steps
    ),
)
quick = dict(
    methods=['labeled_only', 'dmt', 'mean_teacher', 'cps_cutmix'],
    seeds=[0, 1],
    budget=dict(student_steps=400),
    validations=2,
)
del few_steps
