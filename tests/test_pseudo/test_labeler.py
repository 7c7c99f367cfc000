from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from PIL import Image
from tiny_models import tiny_segmentor
from tiny_project import base_config, make_tree

from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo import (
    ClassBalancedThreshold,
    PseudoLabelStore,
    StoreMismatchError,
    apply_thresholds,
    codec,
    ratio_rule_thresholds,
)
from mmdmt.pseudo.base_labeler import Progress, UnreadableImageError
from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.pseudo.prediction import predict_probabilities
from mmdmt.pseudo.thresholds import threshold_ratio_labels
from mmdmt.registry import DATASETS


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


@pytest.fixture
def setting(tmp_path):
    """Labeling arguments and a checkpoint."""
    tree = make_tree(tmp_path / 'tree')
    dataset = base_config(tree, tmp_path)['train_dataloader']['dataset']['datasets'][1]
    dataset['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    torch.manual_seed(0)
    model = build_segmentor(tiny_segmentor())
    model.decode_head.conv_seg.weight.data.mul_(100)  # confident, so that classes differ
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'teacher.pth')
    arguments = dict(model=tiny_segmentor(), dataset=dataset, num_workers=0, pixel_stride=2)
    return arguments, str(tmp_path / 'teacher.pth'), model.eval()


def run(setting, store_dir, ratio=0.5):
    arguments, checkpoint, _ = setting
    return PseudoLabeler(str(store_dir), **arguments).run(checkpoint, ratio)


def count_forwards(monkeypatch):
    calls = []
    original = PseudoLabelStore.put
    monkeypatch.setattr(
        PseudoLabelStore,
        'put',
        lambda self, name, *maps: calls.append(name) or original(self, name, *maps),
    )
    return calls


def test_labels_are_the_networks_predictions_at_image_size(setting, tmp_path):
    arguments, _, model = setting
    run(setting, tmp_path / 'store')
    store = PseudoLabelStore(tmp_path / 'store')
    sample = DATASETS.build(arguments['dataset'])[3]
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    data = model.data_preprocessor(batch, False)
    logits = model.predict(data['inputs'], data['data_samples'])[0].seg_logits.data
    label, confidence = store.get('unlabeled_3')
    assert torch.equal(torch.from_numpy(label).long(), logits.argmax(0))
    torch.testing.assert_close(
        torch.from_numpy(confidence), logits.softmax(0).amax(0), rtol=0, atol=2e-3
    )


def test_each_image_is_labeled_once_and_a_finished_store_is_kept(setting, tmp_path, monkeypatch):
    calls = count_forwards(monkeypatch)
    first = run(setting, tmp_path / 'store')
    assert sorted(calls) == [f'unlabeled_{i}' for i in range(6)]
    assert run(setting, tmp_path / 'store') == first and len(calls) == 6


def test_an_interrupted_pass_goes_on_and_ends_the_same(setting, tmp_path, monkeypatch):
    whole = run(setting, tmp_path / 'whole')
    calls = count_forwards(monkeypatch)
    monkeypatch.setattr(Progress, 'step', interrupt_after(2))
    with pytest.raises(KeyboardInterrupt):
        run(setting, tmp_path / 'cut')
    assert not PseudoLabelStore(tmp_path / 'cut').is_complete
    monkeypatch.setattr(Progress, 'step', lambda *_: None)
    assert run(setting, tmp_path / 'cut') == whole
    assert len(calls) == 6, 'an image was labeled twice'


def interrupt_after(count):
    steps = []

    def step(self, images):
        steps.append(images)
        if len(steps) == count:
            raise KeyboardInterrupt

    return step


def test_a_damaged_map_is_labeled_again(setting, tmp_path, monkeypatch):
    whole = run(setting, tmp_path / 'store')
    path = next((tmp_path / 'store' / 'maps').glob('unlabeled_2.*'))
    path.write_bytes(path.read_bytes()[:-7])
    calls = count_forwards(monkeypatch)
    assert run(setting, tmp_path / 'store') == whole
    assert calls == ['unlabeled_2']


@pytest.mark.parametrize('workers', [0, 2])
def test_an_image_that_cannot_be_loaded_is_named_and_costs_no_labels(
    setting, tmp_path, monkeypatch, workers
):
    arguments, _, _ = setting
    pipeline = [dict(type='LoadImageFromFile', imdecode_backend='pillow')]
    dataset = dict(arguments['dataset'], pipeline=[*pipeline, dict(type='PackSegInputs')])
    path = Path(dataset['data_root']) / 'img' / 'unlabeled_3.png'
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    changes = dict(dataset=dataset, num_workers=workers)
    calls = count_forwards(monkeypatch)
    with pytest.raises(UnreadableImageError, match=r"unlabeled_3\.png .*OSError.*mode='full'"):
        labeled_with(setting, tmp_path / 'store', **changes)
    assert calls == [f'unlabeled_{i}' for i in range(3)]
    path.write_bytes(content)
    labeled_with(setting, tmp_path / 'store', **changes)
    assert calls == [f'unlabeled_{i}' for i in range(6)]


def test_a_list_that_changed_is_counted_again(setting, tmp_path, monkeypatch):
    arguments, _, _ = setting
    labeled_with(setting, tmp_path / 'store', dataset=dict(arguments['dataset'], indices=4))
    calls = count_forwards(monkeypatch)
    assert run(setting, tmp_path / 'store')['num_images'] == 6
    assert calls == ['unlabeled_4', 'unlabeled_5']
    fewer = labeled_with(setting, tmp_path / 'store', dataset=dict(arguments['dataset'], indices=3))
    assert fewer['num_images'] == 3 and len(calls) == 2


def test_another_ratio_keeps_the_maps(setting, tmp_path, monkeypatch):
    low = run(setting, tmp_path / 'store', ratio=0.2)
    calls = count_forwards(monkeypatch)
    high = run(setting, tmp_path / 'store', ratio=0.8)
    assert calls == [] and high['kept_share'] > low['kept_share']


def labeled_with(setting, store_dir, ratio=0.5, **changes):
    """Manifest of a pass with other settings."""
    arguments, checkpoint, _ = setting
    return PseudoLabeler(str(store_dir), **{**arguments, **changes}).run(checkpoint, ratio)


def float_maps(setting):
    """Probabilities of every image, in float, without the store."""
    arguments, _, model = setting
    dataset = DATASETS.build(arguments['dataset'])
    maps = {}
    for index in range(len(dataset)):
        sample = dataset[index]
        batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
        with torch.no_grad():
            maps[dataset.get_data_info(index)['name']] = predict_probabilities(model, batch)[0]
    return maps


@pytest.mark.parametrize('ratio', [0.2, 0.6])
def test_the_store_gives_the_thresholds_and_pixels_of_the_float_version(setting, tmp_path, ratio):
    manifest = labeled_with(setting, tmp_path / 'store', ratio, pixel_stride=1)
    exact = ClassBalancedThreshold(4, pixel_stride=1)
    maps = {name: prob.max(dim=0) for name, prob in float_maps(setting).items()}
    for top in maps.values():
        exact.update(top.indices, top.values)
    thresholds = exact.compute(ratio)
    np.testing.assert_allclose(manifest['thresholds'], thresholds, rtol=1e-3)
    kept = sum(
        (apply_thresholds(top.indices, top.values, thresholds) != 255).sum().item()
        for top in maps.values()
    )
    assert sum(manifest['kept_pixels']) == pytest.approx(kept, rel=1e-3)


def test_a_map_takes_two_bytes_a_pixel_before_compression(setting, tmp_path, monkeypatch):
    raw = []
    original = codec._join
    monkeypatch.setattr(codec, '_join', lambda *args: raw.append(args[-1]) or original(*args))
    manifest = run(setting, tmp_path / 'store')
    assert sum(map(len, raw)) <= 2 * manifest['num_pixels']


def test_the_manifest_describes_every_class(setting, tmp_path):
    manifest = labeled_with(setting, tmp_path / 'store')
    tops = [prob.max(dim=0) for prob in float_maps(setting).values()]
    label = torch.cat([top.indices.flatten() for top in tops])
    confidence = torch.cat([top.values.flatten() for top in tops])
    for index in range(4):
        own = confidence[label == index]
        assert manifest['predicted_pixels'][index] == len(own)
        mean = own.mean().item() if len(own) else 0
        assert manifest['class_confidence'][index] == pytest.approx(mean, abs=2e-3)


def test_a_fixed_threshold_is_not_balanced(setting, tmp_path):
    manifest = labeled_with(setting, tmp_path / 'store', threshold=0.7)
    assert manifest['thresholds'] == pytest.approx([0.7] * 4)
    label, confidence = PseudoLabelStore(tmp_path / 'store').get_thresholded('unlabeled_1')
    assert ((confidence >= np.float32(0.7)) == (label != 255)).all()


def test_one_share_of_all_classes_together(setting, tmp_path, monkeypatch):
    class_wise = run(setting, tmp_path / 'store')
    calls = count_forwards(monkeypatch)
    together = labeled_with(setting, tmp_path / 'store', balance='global')
    assert calls == [], 'another way of selecting needs no new labels'
    assert len(set(together['thresholds'])) == 1 < len(set(class_wise['thresholds']))
    assert together['kept_share'] == pytest.approx(0.5, abs=0.05)


def test_threshold_ratio_takes_a_second_pass_and_gives_that_rules_labels(
    setting, tmp_path, monkeypatch
):
    first = run(setting, tmp_path / 'argmax')
    calls = count_forwards(monkeypatch)
    manifest = labeled_with(setting, tmp_path / 'store', rule='threshold_ratio')
    assert len(calls) == 12
    assert not (tmp_path / 'store' / 'first_pass').exists()
    limits = ratio_rule_thresholds(torch.tensor(first['thresholds']), 0.5)
    assert manifest['thresholds'] == pytest.approx(limits.tolist())
    store, same, pixels, moved = PseudoLabelStore(tmp_path / 'store'), 0, 0, 0
    for name, prob in float_maps(setting).items():
        expected = apply_thresholds(*threshold_ratio_labels(prob, limits), limits)
        got = torch.from_numpy(store.get_thresholded(name)[0]).long()
        same += (got == expected).sum().item()
        pixels += got.numel()
        moved += (store.get(name)[0] != prob.argmax(dim=0).numpy()).sum()
    # Of so few pixels a stored confidence that equals a threshold is a larger share than on photos.
    assert same >= 0.998 * pixels
    assert moved > 0, 'the rule changed no label: the test shows nothing'
    assert labeled_with(setting, tmp_path / 'store', rule='threshold_ratio') == manifest
    assert len(calls) == 12


@pytest.mark.parametrize('after', [2, 8])
def test_threshold_ratio_goes_on_in_either_pass(setting, tmp_path, monkeypatch, after):
    whole = labeled_with(setting, tmp_path / 'whole', rule='threshold_ratio')
    calls = count_forwards(monkeypatch)
    monkeypatch.setattr(Progress, 'step', interrupt_after(after))
    with pytest.raises(KeyboardInterrupt):
        labeled_with(setting, tmp_path / 'cut', rule='threshold_ratio')
    monkeypatch.setattr(Progress, 'step', lambda *_: None)
    assert labeled_with(setting, tmp_path / 'cut', rule='threshold_ratio') == whole
    assert len(calls) == 12, 'an image was labeled twice'


def test_maps_of_another_rule_or_view_are_not_taken_for_these(setting, tmp_path):
    run(setting, tmp_path / 'store')
    for change in (dict(rule='threshold_ratio'), dict(tta=dict(flip=True)), dict(amp=True)):
        with pytest.raises(StoreMismatchError, match=next(iter(change))):
            labeled_with(setting, tmp_path / 'store', **change)


def test_augmented_views_and_half_precision_reach_the_labels(setting, tmp_path):
    manifests = [
        labeled_with(setting, tmp_path / str(index), **change)
        for index, change in enumerate(
            [{}, dict(amp=True), dict(tta=dict(flip=True, scales=[0.75, 1.0]))]
        )
    ]
    means = [manifest['mean_confidence'] for manifest in manifests]
    assert len(set(means)) == 3
    assert means[1] == pytest.approx(means[0], abs=0.02)
    assert means[2] < means[0], 'an average of views is less confident than one'


def test_images_of_different_sizes_in_one_batch(setting, tmp_path):
    arguments, _, _ = setting
    root = Path(arguments['dataset']['data_root']) / 'img'
    Image.open(root / 'unlabeled_1.png').crop((0, 0, 20, 26)).save(root / 'unlabeled_1.png')
    one = labeled_with(setting, tmp_path / 'one')
    four = labeled_with(setting, tmp_path / 'four', batch_size=4)
    # Batches of another size round differently in the last bit, which may be a step of the store.
    for key in ('thresholds', 'class_confidence', 'predicted_pixels'):
        assert four[key] == pytest.approx(one[key], rel=1e-3)
    stores = [PseudoLabelStore(tmp_path / name) for name in ('one', 'four')]
    assert stores[1].get('unlabeled_1')[0].shape == (26, 20)
    for name in four['files']:
        np.testing.assert_array_equal(*(store.get(name)[0] for store in stores))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(rule='best'), "'best'"),
        (dict(balance='image'), "'image'"),
        (dict(threshold=90), '90'),
        (dict(threshold=0.9, balance='global'), 'remove'),
        (dict(tta=dict(rotate=True)), 'rotate'),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(setting, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        labeled_with(setting, tmp_path / 'store', **change)


def test_ten_views_are_summed_and_every_pixel_gets_its_best_class(setting, tmp_path):
    """Labels of ST: five scales, both orientations, no threshold."""
    arguments, checkpoint, model = setting
    scales = (0.5, 0.75, 1.0, 1.5, 2.0)
    settings = dict(tta=dict(flip=True, scales=list(scales)), threshold=0.0)
    labeler = PseudoLabeler(str(tmp_path / 'store'), **arguments, **settings)
    assert labeler.run(checkpoint, 1.0)['kept_share'] == 1
    sample = DATASETS.build(arguments['dataset'])[2]
    total = torch.zeros(4, *sample['inputs'].shape[1:])
    processor = model.data_preprocessor
    for scale in scales:
        size = [round(side * scale) for side in total.shape[1:]]
        for flip in (False, True):
            view = torch.nn.functional.interpolate(
                sample['inputs'][None].float(), size, mode='bilinear', antialias=True
            )
            view = view.flip(-1) if flip else view
            image = (view[:, [2, 1, 0]] - processor.mean) / processor.std
            with torch.no_grad():
                logits = model.encode_decode(image, [dict(img_shape=tuple(size))])
            logits = logits.flip(-1) if flip else logits
            logits = torch.nn.functional.interpolate(logits, total.shape[1:], mode='bilinear')
            total += logits[0].softmax(dim=0)
    label, confidence = labeler.store.get_thresholded('unlabeled_2')
    assert (torch.from_numpy(label).long() == total.argmax(dim=0)).float().mean() > 0.999
    np.testing.assert_allclose(confidence, total.amax(dim=0) / 10, atol=2e-3)


def test_labels_of_before_are_taken_over_and_only_others_are_made(setting, tmp_path, monkeypatch):
    arguments, checkpoint, model = setting
    (tmp_path / 'only.txt').write_text('unlabeled_4\nunlabeled_1\n')
    part = dict(arguments['dataset'], only=str(tmp_path / 'only.txt'))
    before = PseudoLabeler(str(tmp_path / 'before'), **dict(arguments, dataset=part))
    assert before.run(checkpoint, 1.0)['files'] == ['unlabeled_1', 'unlabeled_4']
    model.decode_head.conv_seg.weight.data.neg_()
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'other.pth')
    steps = []
    monkeypatch.setattr(Progress, 'step', lambda self, count: steps.append(count))
    stores = []
    for folder, options in (('plain', {}), ('both', dict(labels_before=str(tmp_path / 'before')))):
        labeler = PseudoLabeler(str(tmp_path / folder), **arguments, **options)
        labeler.run(str(tmp_path / 'other.pth'), 1.0)
        stores.append(labeler.store)
    assert sum(steps) == 6 + 4
    for index in range(6):
        name = f'unlabeled_{index}'
        origin = before.store if index in (1, 4) else stores[0]
        for got, expected in zip(stores[1].get(name), origin.get(name)):
            assert np.array_equal(got, expected)
    assert stores[1].manifest['labels_before'] == before.store.manifest['checkpoint']
