import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from mmdmt.pseudo import ClassBalancedThreshold, apply_thresholds

GOLDEN = Path(__file__).resolve().parents[1] / 'data' / 'golden'


def golden(name):
    """Ratio, expected results, and (label, confidence) of each true-size image."""
    with np.load(GOLDEN / f'{name}.npz') as data:
        data = dict(data)
    images = []
    for logits, height, width in zip(data['logits'], data['heights'], data['widths']):
        prob = torch.from_numpy(logits)[:, :height, :width].softmax(dim=0)
        confidence, label = prob.max(dim=0)
        images.append((label, confidence))
    return data, images


def fed(images, num_classes, **kwargs):
    threshold = ClassBalancedThreshold(num_classes, **kwargs)
    for label, confidence in images:
        threshold.update(label, confidence)
    return threshold


@pytest.mark.parametrize('name', ['cbst_0', 'cbst_1'])
@pytest.mark.parametrize('as_numpy', [False, True])
def test_golden_thresholds_and_labels(name, as_numpy):
    data, images = golden(name)
    if as_numpy:
        images = [(lab.numpy().astype(np.uint8), conf.numpy()) for lab, conf in images]
    threshold = fed(images, int(data['num_classes']), pixel_stride=int(data['pixel_stride']))
    thresholds = threshold.compute(float(data['label_ratio']))
    np.testing.assert_allclose(thresholds, data['thresholds'], rtol=1e-6)
    kept = total = 0
    for index, (label, confidence) in enumerate(images):
        result = np.asarray(apply_thresholds(label, confidence, thresholds))
        np.testing.assert_array_equal(result, data[f'label_{index}'])
        kept, total = kept + (result != 255).sum(), total + result.size
    assert kept / total == pytest.approx(float(data['labeled_fraction']))


def random_images(num=5, num_classes=4, seed=0, scale=4.0):
    gen = torch.Generator().manual_seed(seed)
    images = []
    for _ in range(num):
        prob = (scale * torch.randn(num_classes, 20, 30, generator=gen)).softmax(dim=0)
        confidence, label = prob.max(dim=0)
        images.append((label, confidence))
    return images


@pytest.mark.parametrize('ratio', [0.001, 0.2, 0.5, 0.99, 1.0])
@pytest.mark.parametrize('stride', [1, 7])
def test_exact_threshold_is_the_value_at_its_rank(ratio, stride):
    images = random_images()
    thresholds = fed(images, 4, pixel_stride=stride).compute(ratio)
    for index in range(4):
        values = sorted(
            (
                value
                for label, confidence in images
                for cls, value in zip(
                    label.flatten()[::stride].tolist(), confidence.flatten()[::stride].tolist()
                )
                if cls == index
            ),
            reverse=True,
        )
        if ratio == 1:
            expected = values[-1]
        else:
            expected = values[int(len(values) * ratio)] if len(values) * ratio >= 1 else 1e-5
        assert thresholds[index].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('bins', [None, 100])
def test_ratio_one_of_all_pixels_keeps_everything(bins):
    images = random_images()
    thresholds = fed(images, 4, pixel_stride=1, bins=bins).compute(1.0)
    for label, confidence in images:
        assert torch.equal(apply_thresholds(label, confidence, thresholds), label)


@pytest.mark.parametrize('bins', [None, 100])
@pytest.mark.parametrize('ratio', [0.2, 1.0])
def test_classes_without_pixels_do_not_crash(bins, ratio):
    label, confidence = torch.zeros(4, 4, dtype=torch.long), torch.full((4, 4), 0.9)
    threshold = ClassBalancedThreshold(3, pixel_stride=1, bins=bins)
    assert threshold.compute(ratio).tolist() == pytest.approx([1e-5] * 3)
    threshold.update(label, confidence)
    assert threshold.compute(ratio)[1:].tolist() == pytest.approx([1e-5] * 2)


def test_a_class_too_small_for_a_rank_keeps_what_it_has():
    label = torch.tensor([[0] * 96 + [1] * 4])
    confidence = torch.linspace(0.3, 0.9, 100)[None]
    thresholds = fed([(label, confidence)], 2, pixel_stride=1).compute(0.2)
    result = apply_thresholds(label, confidence, thresholds)
    assert (result == 1).sum() == 4  # int(4 * 0.2) = 0
    assert (result == 0).sum() == 20  # ranks 0 to int(96 * 0.2) = 19


@pytest.mark.parametrize('bins', [None, 50])
def test_merged_ranks_equal_one_process(bins):
    images = random_images(6)
    whole = fed(images, 4, pixel_stride=3, bins=bins)
    first, second = (fed(images[rank::2], 4, pixel_stride=3, bins=bins) for rank in (1, 0))
    first.merge(pickle.loads(pickle.dumps(second)))  # as all_gather_object sends it
    for ratio in (0.2, 0.7, 1.0):
        assert torch.equal(first.compute(ratio), whole.compute(ratio))


@pytest.mark.parametrize('scale', [1.0, 4.0, 12.0])
@pytest.mark.parametrize('ratio', [0.2, 0.6, 0.9])
def test_histogram_is_close_to_the_exact_threshold(scale, ratio):
    images = random_images(10, scale=scale)
    exact = fed(images, 4, pixel_stride=1).compute(ratio)
    near = fed(images, 4, pixel_stride=1, bins=200).compute(ratio)
    assert (near - exact).abs().max() < 1 / 200
    # Also where nearly everything is above 0.99: the share that is kept is right.
    kept = [
        sum((apply_thresholds(*image, t) != 255).float().mean().item() for image in images) / 10
        for t in (exact, near)
    ]
    assert kept[0] == pytest.approx(kept[1], abs=0.01)


def test_what_other_ranks_get_is_small():
    """Not the pixels, but how often each value occurred: bounded where values are quantized."""
    images = [(label, (4096 * conf).round() / 4096) for label, conf in random_images(100)]
    pixels = sum(label.numel() for label, _ in images)
    for bins, values in ((None, 4096), (64, 8 * 64)):
        small = len(pickle.dumps(fed(images, 4, pixel_stride=1, bins=bins)))
        assert small < 4 * values * 12 + 2000 < 4 * pixels
        assert small < 4 * pixels


def test_values_are_counted_while_images_come(monkeypatch):
    images = random_images(6)
    expected = fed(images, 4, pixel_stride=1).compute(0.3)
    monkeypatch.setattr('mmdmt.pseudo.thresholds._MAX_RECENT', 1000)
    counter = fed(images, 4, pixel_stride=1)
    assert counter._num_recent < 2000
    assert torch.equal(counter.compute(0.3), expected)


@pytest.mark.parametrize('bins', [None, 64])
def test_ignored_labels_do_not_count(bins):
    label, confidence = random_images(1)[0]
    ignored = label.clone()
    ignored[label == 3] = 255
    thresholds = fed([(ignored, confidence)], 4, pixel_stride=1, bins=bins).compute(0.5)
    expected = fed([(label, confidence)], 4, pixel_stride=1, bins=bins).compute(0.5)
    assert torch.equal(thresholds[:3], expected[:3])
    assert thresholds[3].item() == pytest.approx(1e-5)


def test_half_precision_confidences():
    label, confidence = random_images(1)[0]
    rounded = confidence.bfloat16()
    got = fed([(label, rounded)], 4).compute(0.5)
    assert torch.equal(got, fed([(label, rounded.float())], 4).compute(0.5))


@pytest.mark.parametrize('dtype', [torch.uint8, torch.int64])
@pytest.mark.parametrize('as_numpy', [False, True])
def test_apply_keeps_ties_type_and_input(dtype, as_numpy):
    label = torch.tensor([[0, 0, 1, 1, 255]], dtype=dtype)
    confidence = torch.tensor([[0.5, 0.49, 0.5, 0.8, 1.0]])
    thresholds = torch.tensor([0.5, 0.8])
    before = label.clone()
    if as_numpy:
        label, confidence = label.numpy(), confidence.numpy()
    result = apply_thresholds(label, confidence, thresholds)
    assert type(result) is type(label)
    assert result.dtype == label.dtype
    assert result.tolist() == [[0, 255, 255, 1, 255]]
    assert label.tolist() == before.tolist()


def test_apply_with_another_ignore_index():
    label, confidence = torch.tensor([0, 1]), torch.tensor([0.2, 0.9])
    result = apply_thresholds(label, confidence, torch.tensor([0.5, 0.5]), ignore_index=-1)
    assert result.tolist() == [-1, 1]


def test_bad_input_is_refused():
    threshold = ClassBalancedThreshold(4)
    for ratio in (0, -0.1, 20):
        with pytest.raises(ValueError, match='ratio'):
            threshold.compute(ratio)
    threshold.compute(5 * 0.2 + 1e-12)
    with pytest.raises(ValueError, match='same shape'):
        threshold.update(torch.zeros(3, 3), torch.zeros(3, 4))
    with pytest.raises(ValueError, match='diverged'):
        threshold.update(torch.zeros(3, 3), torch.full((3, 3), torch.nan))
    with pytest.raises(ValueError, match='pixel_stride=16 and pixel_stride=4'):
        threshold.merge(ClassBalancedThreshold(4, pixel_stride=4))
    with pytest.raises(ValueError, match='positive'):
        ClassBalancedThreshold(4, bins=0)
