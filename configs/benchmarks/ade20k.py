# SegFormer B1 on ADE20K, crops of 512x512, 40000 steps. Its validation set is also what is tested, as
# published: compare the last ones.
labels = ['1_32', '1_16', '1_8', '1_4']
folds = [0]
lists = 'splits/{labels}/fold_{fold}'
seeds = [0, 1, 2]
budget = dict(student_steps=40000)
validations = 8
methods = dict(
    labeled_only=dict(config='../supervised/segformer_mit-b1_ade20k-512x512.py'),
    dmt=dict(config='../dmt/dmt_segformer_mit-b1_1_8_ade20k-512x512.py'),
    mean_teacher=dict(config='../mean_teacher/mean-teacher_segformer_mit-b1_ade20k-512x512.py'),
    fixmatch=dict(config='../fixmatch/fixmatch-v2_segformer_mit-b1_ade20k-512x512.py'),
    dual_teacher=dict(config='../dual_teacher/dual-teacher_segformer_mit-b1_1_8_ade20k-512x512.py'),
)
quick = dict(labels=['1_8'], seeds=[0], budget=dict(student_steps=2000))
