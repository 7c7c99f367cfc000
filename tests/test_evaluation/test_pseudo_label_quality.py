"""Quality of pseudo-labels against counting pixel by pixel."""

import json

import numpy as np
import pytest
import torch

from mmdmt.evaluation.pseudo_label_quality import PseudoLabelQuality, quality_table, rounds_table

CLASSES = 4


def scene(seed, height=9, width=13, truth=True):
    """Label, confidence, kept and truth, each with pixels of no class; class 3 is never true."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, (height, width)).astype(np.uint8)
    label[0, :3] = 255
    confidence = rng.random((height, width)).astype(np.float32)
    confidence[1, :4] = 0, 1, 1 / 15, 2 / 15
    kept = rng.random((height, width)) < 0.6
    true = rng.integers(0, CLASSES - 1, (height, width)).astype(np.uint8)
    true[:2, -2:] = 255
    return label, confidence, kept, true if truth else None


def quality_of(scenes):
    quality = PseudoLabelQuality(CLASSES)
    for maps in scenes:
        quality.update(*maps)
    return quality


def pixels(scenes):
    for label, confidence, kept, truth in scenes:
        truth = np.full_like(label, 255) if truth is None else truth
        yield from zip(label.ravel(), confidence.ravel(), kept.ravel(), truth.ravel())


def share(part, whole):
    return part / whole if whole else None


def brute_force(scenes, only_kept):
    """Accuracy, IoU per class, precision per class, and calibration, one pixel at a time."""
    correct = total = 0
    both, either, predicted = ([0] * CLASSES for _ in range(3))
    bins = [[0, 0, 0.0] for _ in range(15)]
    for label, confidence, kept, truth in pixels(scenes):
        if truth == 255 or (only_kept and (not kept or label == 255)):
            continue
        total += 1
        correct += label == truth
        for index in range(CLASSES):
            both[index] += label == truth == index
            either[index] += index in (label, truth)
            predicted[index] += label == index
        if label != 255:
            number = next(n for n in range(15) if float(confidence) <= (n + 1) / 15)
            bins[number][0] += 1
            bins[number][1] += label == truth
            bins[number][2] += float(confidence)
    counted = sum(b[0] for b in bins)
    error = sum(b[0] / counted * abs(b[1] / b[0] - b[2] / b[0]) for b in bins if b[0])
    ious = [share(*pair) for pair in zip(both, either)]
    known = [iou for iou in ious if iou is not None]
    return dict(
        accuracy=correct / total,
        miou=sum(known) / len(known),
        ece=error,
        ious=ious,
        precisions=[share(*pair) for pair in zip(both, predicted)],
        bins=bins,
    )


@pytest.mark.parametrize('only_kept', [False, True])
def test_against_brute_force(only_kept):
    scenes = [scene(0), scene(1, 5, 6), scene(2, truth=False)]
    found, expected = quality_of(scenes).compute(), brute_force(scenes, only_kept)
    suffix = '_kept' if only_kept else ''
    for key in ('accuracy', 'miou', 'ece'):
        assert found[key + suffix] == pytest.approx(expected[key]), key
    for index, row in enumerate(found['classes']):
        assert row['iou' + suffix] == pytest.approx(expected['ious'][index])
        assert row['precision' + suffix] == pytest.approx(expected['precisions'][index])
    if not only_kept:
        assert [row['pixels'] for row in found['reliability']] == [b[0] for b in expected['bins']]
        for row, (count, correct, confidence) in zip(found['reliability'], expected['bins']):
            assert row['accuracy'] == pytest.approx(share(correct, count))
            assert row['confidence'] == pytest.approx(share(confidence, count))


def test_shares_count_every_image_also_those_without_truth():
    scenes = [scene(0), scene(2, truth=False)]
    found, all_pixels = quality_of(scenes).compute(), list(pixels(scenes))
    assert found['num_images'] == 2 and found['num_pixels'] == len(all_pixels)
    assert found['num_true_pixels'] == sum(truth != 255 for *_, truth in all_pixels)
    kept = [label for label, _, kept, _ in all_pixels if kept and label != 255]
    assert found['kept_share'] == pytest.approx(len(kept) / len(all_pixels))
    for index, row in enumerate(found['classes']):
        predicted = sum(label == index for label, *_ in all_pixels)
        assert row['predicted_share'] == pytest.approx(predicted / len(all_pixels))
        assert row['kept_share'] == pytest.approx(kept.count(index) / predicted)


def test_classes_have_a_calibration_error_and_a_share_of_what_is_kept():
    scenes = [scene(0), scene(1, 5, 6)]
    rows = quality_of(scenes).compute()['classes']
    every = [each for each in pixels(scenes) if each[0] != 255]
    kept = [label for label, _, is_kept, _ in every if is_kept]
    for index, row in enumerate(rows):
        assert row['share_of_kept'] == pytest.approx(kept.count(index) / len(kept))
        # Of a class alone: labels of other classes are unlabeled.
        alone = [
            (label, confidence, is_kept & (label == index), np.where(label == index, truth, 255))
            for label, confidence, is_kept, truth in scenes
        ]
        for suffix in ('', '_kept'):
            expected = brute_force(alone, bool(suffix))['ece']
            assert row[f'ece{suffix}'] == pytest.approx(expected), (index, suffix)


def test_the_table_of_rounds():
    qualities = {f'stage_{i}_a': quality_of([scene(i)]).compute() for i in (1, 2)}
    text = rounds_table(qualities, ['sky', 'road', 'car', 'cow'])
    overview, *tables = text.split('\n\n')
    assert len(tables) == 3 and all('stage_2_a' in table and 'cow' in table for table in tables)
    for name, found in qualities.items():
        (row,) = [line for line in overview.splitlines() if name in line]
        assert f'{100 * found["ece"]:.2f}' in row and f'{100 * found["kept_share"]:.2f}' in row
    without = {'stage_1_a': quality_of([scene(0, truth=False)]).compute()}
    assert len(rounds_table(without, list('abcd')).split('\n\n')) == 1


def test_tensors_give_what_arrays_give():
    maps = scene(0)
    tensors = [torch.from_numpy(values) for values in maps]
    assert quality_of([tensors]).compute() == quality_of([maps]).compute()


def test_perfect_and_confident_labels():
    truth = np.arange(8).reshape(2, 4) % CLASSES
    quality = PseudoLabelQuality(CLASSES)
    quality.update(truth, np.ones((2, 4)), np.ones((2, 4), bool), truth)
    found = quality.compute()
    for suffix in ('', '_kept'):
        assert (found['accuracy' + suffix], found['miou' + suffix]) == (1, 1)
        assert found['ece' + suffix] == 0


def test_a_class_that_is_nowhere_does_not_count():
    quality = PseudoLabelQuality(3)
    zeros = np.zeros((2, 2), int)
    quality.update(zeros, np.full((2, 2), 0.5), zeros.astype(bool), zeros)
    found = quality.compute()
    assert found['miou'] == 1
    assert found['classes'][2]['iou'] is None
    # Nothing is kept: there is nothing to be right about.
    assert found['kept_share'] == 0
    assert found['accuracy_kept'] is found['miou_kept'] is found['ece_kept'] is None


def test_nothing_seen_is_no_error():
    found = PseudoLabelQuality(2).compute()
    assert found['kept_share'] is found['accuracy'] is found['ece'] is None
    assert '0 images' in quality_table(found, ['a', 'b'])


def test_bad_input_is_refused():
    quality = PseudoLabelQuality(2)
    zeros = np.zeros((2, 3), int)
    with pytest.raises(ValueError, match=r'`kept` is \(3, 2\) where `label` is \(2, 3\)'):
        quality.update(zeros, zeros, zeros.T)
    with pytest.raises(ValueError, match='`ground_truth` has the value 7'):
        quality.update(zeros, zeros, zeros, zeros + 7)
    with pytest.raises(ValueError, match='must be positive'):
        PseudoLabelQuality(0)
    assert quality.num_images <= 1


def test_table_and_json():
    found = quality_of([scene(0)]).compute()
    assert json.loads(json.dumps(found)) == found
    text = quality_table(found, ['sky', 'road', 'car', 'cow'])
    assert 'mIoU' in text and 'cow' in text and '0.93 - 1.00' in text
    assert len({len(line) for line in text.split('\n\n')[1].splitlines()}) == 1
    without = quality_table(quality_of([scene(0, truth=False)]).compute(), list('abcd'))
    assert 'mIoU' not in without and 'kept' in without
