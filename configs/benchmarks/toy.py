# All methods on the generated scenes of the demo, 6 of 320 labeled, with five draws of the labels. On
# two idle CPU cores (measured; docs/results.md has the tables):
#   python tools/benchmark.py configs/benchmarks/toy.py --jobs 2          two hours
#   python tools/benchmark.py configs/benchmarks/toy.py --jobs 2 --quick  eleven minutes
# The scenes are the same for all seeds and are painted when they are missing; a seed is another
# draw of the labeled ones, and another start.
root = 'data/toy_scenes_clear'
dataset = dict(toy_scenes=dict(root=root, style='clear', num_labeled=6))
lists = 'splits/benchmark_{labels}/seed_{seed}'
labels = ['6']
seeds = [0, 1, 2, 3, 4]
budget = dict(student_steps=1000)
options = dict(data_root=root)
# A network that starts from nothing knows little for a third of the run, and a thousand steps are
# few for an average over hundreds: labels are trusted as they get better, teachers follow fast.
# Sources distort colors already, so strong views distort them half as much as published. All
# that is as in the config of Dual Teacher, for all methods alike; the rest is as published.
ramp = {'model.rampup_iters': 0.5}  # of the run
fast = {'model.ema.momentum': 0.95}
mild = {'model.strong.preset': 'dual_teacher_cutmix'}
sure = {'model.threshold': 0.9}
# Such networks fill few banks of features.
contrast = {
    'model.contrast.anchors_per_class': 32,
    'model.contrast.bank.size': 64,
    'model.contrast.bank.threshold': 0.8,
    'model.contrast.start': 0.5,
}
end = 'fcn_unet_toy-scenes-96x96.py'
methods = dict(
    labeled_only=dict(config=f'../supervised/{end}'),
    dmt=dict(config=f'../dmt/dmt_{end}'),
    st=dict(config=f'../st/st_{end}'),
    st_plus_plus=dict(config=f'../st/st-plus-plus_{end}'),
    mean_teacher=dict(
        config=f'../mean_teacher/mean-teacher_{end}', options={**ramp, **fast, **mild, **sure}
    ),
    fixmatch=dict(config=f'../fixmatch/fixmatch_{end}', options={**ramp, **mild, **sure}),
    cutmix_seg=dict(config=f'../cutmix_seg/cutmix-seg_{end}', options={**ramp, **fast}),
    cps=dict(config=f'../cps/cps_{end}', options=ramp),
    cps_cutmix=dict(config=f'../cps/cps-cutmix_{end}', options=ramp),
    unimatch=dict(config=f'../unimatch/unimatch_{end}', options={**ramp, **mild, **sure}),
    unimatch_v2=dict(
        config=f'../unimatch_v2/unimatch-v2_{end}', options={**ramp, **fast, **mild, **sure}
    ),
    augseg=dict(config=f'../augseg/augseg_{end}', options={**ramp, **fast, **sure}),
    prevmatch=dict(config=f'../prevmatch/prevmatch_{end}', options={**ramp, **mild, **sure}),
    u2pl=dict(config=f'../u2pl/u2pl_{end}', options={**ramp, **fast}),
    # without the curves of docs/dual_teacher.md
    dual_teacher=dict(config=f'../dual_teacher/dual-teacher_{end}', options=dict(custom_hooks=[])),
    cross_teacher=dict(
        config=f'../cross_teacher/cross-teacher_{end}',
        options={**ramp, **fast, **sure, **contrast},
    ),
)
# As many steps: after 400 all of these are behind labels alone.
quick = dict(methods=['labeled_only', 'dmt', 'dual_teacher', 'mean_teacher'], seeds=[0, 1])
del end, ramp, fast, mild, sure, contrast, root
