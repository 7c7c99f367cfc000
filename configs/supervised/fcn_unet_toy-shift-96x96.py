# The generated scenes in two lights: 320 labeled ones by day, 320 unlabeled ones and those
# of validation and test at dusk.
#   python examples/toy_scenes.py data/toy_shift/day
#   python examples/toy_scenes.py data/toy_shift/dusk --style dusk
_base_ = './fcn_unet_toy-scenes-96x96.py'

labeled_root = 'data/toy_shift/day'
data_root = 'data/toy_shift/dusk'
labeled_list = 'splits/train.txt'
unlabeled_list = 'splits/train.txt'
shift_settings = dict(
    labeled_root=dict(
        default=labeled_root, sets=['train_dataloader.dataset.datasets.0.**.data_root']
    )
)
train_dataloader = dict(
    dataset=dict(
        datasets=[dict(_base_.labeled_dataset, data_root=labeled_root), _base_.unlabeled_dataset]
    )
)
