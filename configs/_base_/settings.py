# What may be set once, at the top of a child config or by --cfg-options, and where it goes: see
# docs/configs.md for the paths. Dataset and schedule files note the values they were written with; a
# place that holds another value keeps it.
padding = 'mean'  # or 'black': pixels of 0 before normalization (docs/configs.md)
settings = dict(
    padding=dict(
        default=padding,
        sets=[
            'model.**.data_preprocessor.padding',
            'mutual.**.data_preprocessor.padding',
            'train_dataloader.**.PadToCrop.padding',
        ],
    ),
    data_root=dict(sets=['*_dataloader.**.data_root']),
    labeled_list=dict(sets=['train_dataloader.dataset.datasets.0.**.ann_file']),
    unlabeled_list=dict(sets=['train_dataloader.dataset.datasets.1.**.ann_file']),
    val_list=dict(sets=['val_dataloader.**.ann_file', 'test_dataloader.**.ann_file']),
    labeled_folders=dict(sets=['train_dataloader.dataset.datasets.0.data_prefix']),
    unlabeled_folders=dict(sets=['train_dataloader.dataset.datasets.1.data_prefix']),
    val_folders=dict(
        sets=['val_dataloader.dataset.data_prefix', 'test_dataloader.dataset.data_prefix']
    ),
    img_suffix=dict(sets=['*_dataloader.**.img_suffix']),
    seg_map_suffix=dict(sets=['*_dataloader.**.seg_map_suffix']),
    metainfo=dict(sets=['*_dataloader.**.metainfo']),
    mask_values=dict(
        sets=['*_dataloader.**.LoadMasks.mask_values', '*_pipeline.**.LoadMasks.mask_values']
    ),
    num_classes=dict(sets=['model.**.num_classes', 'mutual.**.num_classes']),
    image_size=dict(sets=['*_dataloader.**.scale', '*_pipeline.**.scale', 'mutual.**.scale']),
    resize_ratio=dict(sets=['train_dataloader.**.RandomRe*.ratio_range']),
    crop_size=dict(
        sets=[
            '*_dataloader.**.RandomCrop.crop_size',
            '*_dataloader.**.CenterCrop.crop_size',
            'train_dataloader.**.PadToCrop.size',
            'model.**.data_preprocessor.size',
            'mutual.**.data_preprocessor.size',
        ]
    ),
    batch_size=dict(sets=['train_dataloader.batch_size', 'train_dataloader.sampler.batch_size']),
    source_ratio=dict(sets=['train_dataloader.sampler.source_ratio']),
)
