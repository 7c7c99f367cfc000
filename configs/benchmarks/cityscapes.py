# DeepLabV3+ R50 on Cityscapes, crops of 801x801, evaluated in windows, 80000 steps. UniMatch and
# what is compared with it mine hard examples on the labels (OHEM), for which there is a baseline
# of its own. Its validation set is also what is tested, as published: compare the last ones.
labels = ['1_16', '1_8', '1_4']
folds = [0]
lists = 'splits/{labels}/fold_{fold}'
seeds = [0, 1, 2]
budget = dict(student_steps=80000)
validations = 8
end = 'deeplabv3plus_r50_cityscapes-801x801.py'
methods = dict(
    labeled_only=dict(config=f'../supervised/{end}'),
    labeled_only_ohem=dict(config=f'../supervised/ohem_{end}'),
    dmt=dict(config='../dmt/dmt_deeplabv3plus_r50_1_8_cityscapes-801x801.py'),
    mean_teacher=dict(config=f'../mean_teacher/mean-teacher_{end}'),
    fixmatch=dict(config=f'../fixmatch/fixmatch_{end}'),
    unimatch=dict(config=f'../unimatch/unimatch_{end}'),
    augseg=dict(config=f'../augseg/augseg_{end}'),
    dual_teacher=dict(config=f'../dual_teacher/dual-teacher_{end}'),
)
quick = dict(labels=['1_8'], seeds=[0], budget=dict(student_steps=2000))
del end
