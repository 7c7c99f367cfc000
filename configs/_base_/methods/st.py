# Self-training with strong augmentation (ST of ST++): a network is trained on the labels, labels all
# other images by ten views, and a fresh network is trained on both. A leaf adds runner and lengths.
mutual = dict(
    members=[dict(name='a')],
    ratios=[1.0],
    # threshold 0: every pixel is learned, whatever its confidence.
    labeling=dict(threshold=0.0, tta=dict(flip=True, scales=[0.5, 0.75, 1.0, 1.5, 2.0])),
    pseudo_loss=dict(type='mmdmt.DynamicSelfLoss', gamma=0.0),  # plain cross entropy
    round=dict(from_scratch=True, augment=[dict(type='mmdmt.StrongPseudoAugment')]),
)

# Lengths as published: 80 and 240 passes over lists of images, 16 in a step, the last ones left out.
# Lists of under 200 labels are doubled in round 0; in a round the labeled list is repeated to be no
# shorter than the unlabeled one. `half` is a round on the reliable half of the images.
st_sets = dict(
    pascal_voc12=dict(images=10582, epochs=80, labels=(92, 183, 366, 732, 1464, 662, 1322, 2646)),
    cityscapes=dict(images=2975, epochs=240, labels=(186, 371, 743)),
)
st_steps = {
    dataset: {
        str(n): dict(
            supervised=(n * (2 if n < 200 else 1)) // 16 * s['epochs'],
            **{
                key: (-(-count // n) * n + count) // 16 * s['epochs']
                for key, count in (
                    ('round', s['images'] - n),
                    ('half', (s['images'] - n) // 2),
                )
            },
        )
        for n in s['labels']
    }
    for dataset, s in st_sets.items()
}
# `mutual` of the published runs, by dataset, labels and method.
st_runs = {
    dataset: {
        labels: {
            name: dict(supervised=dict(max_iters=s['supervised']), round=dict(max_iters=length))
            for name, length in (('st', s['round']), ('st_plus_plus', [s['half'], s['round']]))
        }
        for labels, s in steps.items()
    }
    for dataset, steps in st_steps.items()
}
