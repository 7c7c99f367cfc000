# All methods on MSRC-21 with 34 labeled photographs, on small images that a CPU can train on. The
# data is laid out as configs/_base_/datasets/msrc21.py says; another place is
#   --cfg-options options.data_root=/data/msrc21
# 1800 steps are those of docs/results.md; members of DMT level off later:
#   --cfg-options budget.student_steps=5400 --out work_dirs/benchmarks/msrc21_5400 \
#   --only '*/labeled_only/*' '*/dmt/*'
labels = ['1_8']
folds = [0]
lists = 'splits/{labels}/fold_{fold}'
seeds = [0, 1, 2]
budget = dict(student_steps=1800)
validations = 3
# The configs of Mean Teacher, Dual Teacher and Cross Teacher are made for so short a run: labels are
# trusted as they get better, teachers follow fast. So it is for all online methods alike.
ramp = {'model.rampup_iters': 0.5}  # of the run
fast = {'model.ema.momentum': 0.97}
sure = {'model.threshold': 0.9}
end = 'deeplabv3plus_mobilenetv2_msrc21-96x96.py'
methods = dict(
    labeled_only=dict(config=f'../supervised/{end}'),
    dmt=dict(config=f'../dmt/dmt_{end}'),
    dst_cbc=dict(config=f'../dmt/dst-cbc_{end}'),
    cbst=dict(config=f'../dmt/cbst_{end}'),
    curriculum=dict(config=f'../dmt/curriculum_{end}'),
    st=dict(config=f'../st/st_{end}'),
    st_plus_plus=dict(config=f'../st/st-plus-plus_{end}'),
    mean_teacher=dict(config=f'../mean_teacher/mean-teacher_{end}'),
    fixmatch=dict(config=f'../fixmatch/fixmatch_{end}', options={**ramp, **sure}),
    cutmix_seg=dict(config=f'../cutmix_seg/cutmix-seg_{end}', options={**ramp, **fast}),
    cps=dict(config=f'../cps/cps_{end}', options=ramp),
    cps_cutmix=dict(config=f'../cps/cps-cutmix_{end}', options=ramp),
    unimatch=dict(config=f'../unimatch/unimatch_{end}', options={**ramp, **sure}),
    unimatch_v2=dict(config=f'../unimatch_v2/unimatch-v2_{end}', options={**ramp, **fast, **sure}),
    augseg=dict(config=f'../augseg/augseg_{end}', options={**ramp, **fast, **sure}),
    prevmatch=dict(config=f'../prevmatch/prevmatch_{end}', options={**ramp, **sure}),
    u2pl=dict(config=f'../u2pl/u2pl_{end}', options={**ramp, **fast}),
    dual_teacher=dict(config=f'../dual_teacher/dual-teacher_{end}'),
    cross_teacher=dict(config=f'../cross_teacher/cross-teacher_{end}'),
)
quick = dict(
    methods=['labeled_only', 'dmt', 'mean_teacher'], seeds=[0], budget=dict(student_steps=300)
)
del end, ramp, fast, sure
