# DeepLabV3+ R50 on PASCAL VOC 2012 with SBD, crops of 321x321: 80 passes over the unlabeled images,
# as UniMatch and most work since. 16 images in a step; of four GPUs of one job each, four runs at
# a time: --jobs 4. The validation set of VOC is also what is tested, so the best checkpoints are
# selected on it, as published; the last ones are not.
sets = {'1_16': 662, '1_8': 1323, '1_4': 2646}
labels = list(sets)
folds = [0]
lists = 'splits/{labels}/fold_{fold}'
seeds = [0, 1, 2]
budget = dict(student_steps={name: 80 * ((10582 - count) // 8) for name, count in sets.items()})
validations = 8
end = 'deeplabv3plus_r50_pascal_voc12-321x321.py'
chain = 'deeplabv3plus_r50_1_8_pascal_voc12-321x321.py'
methods = dict(
    labeled_only=dict(config=f'../supervised/{end}'),
    dmt=dict(config=f'../dmt/dmt_{chain}'),
    st=dict(config=f'../st/st_{chain}'),
    st_plus_plus=dict(config=f'../st/st-plus-plus_{chain}'),
    mean_teacher=dict(config=f'../mean_teacher/mean-teacher_{end}'),
    fixmatch=dict(config=f'../fixmatch/fixmatch_{end}'),
    unimatch=dict(config=f'../unimatch/unimatch_{end}'),
    augseg=dict(config=f'../augseg/augseg_{end}'),
    prevmatch=dict(config=f'../prevmatch/prevmatch_{end}'),
    dual_teacher=dict(config=f'../dual_teacher/dual-teacher_{end}'),
)
quick = dict(labels=['1_8'], seeds=[0], budget=dict(student_steps=2000))
del sets, end, chain
