# Generated scenes of two lights: labels by day, unlabeled images, validation and test at dusk; and
# what batch norms see (docs/domain_shift.md). Target: labels alone, of the dusk.
dataset = dict(
    toy_scenes=[
        dict(root='data/toy_shift/day', style='day'),
        dict(root='data/toy_shift/dusk', style='dusk'),
    ]
)
seeds = [0, 1, 2]
budget = dict(student_steps=600)
validations = 2
methods = dict(
    labeled_only=dict(config='../supervised/fcn_unet_toy-shift-96x96.py'),
    dmt=dict(config='../dmt/dmt_fcn_unet_toy-shift-96x96.py'),
    dmt_domain=dict(
        config='../dmt/dmt_fcn_unet_toy-shift-96x96.py',
        options={'mutual.round.batch_statistics': 'domain'},
    ),
    mean_teacher=dict(config='../mean_teacher/mean-teacher_fcn_unet_toy-shift-96x96.py'),
    mean_teacher_separate=dict(
        config='../mean_teacher/mean-teacher_fcn_unet_toy-shift-96x96.py',
        options={'model.batch_statistics': 'separate'},
    ),
    mean_teacher_domain=dict(
        config='../mean_teacher/mean-teacher_fcn_unet_toy-shift-96x96.py',
        options={'model.batch_statistics': 'domain'},
    ),
    unimatch=dict(config='../unimatch/unimatch_fcn_unet_toy-shift-96x96.py'),
    unimatch_domain=dict(
        config='../unimatch/unimatch_fcn_unet_toy-shift-96x96.py',
        options={'model.batch_statistics': 'domain'},
    ),
    target=dict(
        config='../supervised/fcn_unet_toy-shift-96x96.py',
        options={'labeled_root': 'data/toy_shift/dusk'},
    ),
)
quick = dict(methods=['labeled_only', 'dmt'], seeds=[0], budget=dict(student_steps=100))
