"""Calibration and selective prediction against torchmetrics and one pixel at a time."""

import math

import pytest
import torch
from torchmetrics.classification import (
    BinaryCalibrationError,
    MulticlassCalibrationError,
    MulticlassJaccardIndex,
)

from mmdmt.evaluation import expected_calibration_error, reliable_segmentation_score
from mmdmt.evaluation.calibration import (
    area_under_risk_coverage,
    certainty_table,
    classwise_histogram,
    confidence_histogram,
    covered_areas,
    maximum_calibration_error,
    mean_iou,
    selective_histogram,
)

CLASSES = 5


@pytest.fixture(scope='module')
def pixels():
    """Probabilities (n, C) of random logits, some of them certain, and true classes."""
    generator = torch.Generator().manual_seed(0)
    label = torch.randint(0, CLASSES, (4000,), generator=generator)
    logits = torch.randn(4000, CLASSES, generator=generator) * 3
    logits[torch.arange(4000), label] += 2
    return logits.softmax(1), label


def by_confidence(histogram):
    """(bins, 2) of pixels and correct ones."""
    return torch.stack([histogram[..., 0].sum(-1), histogram[..., 2].sum(-1)], -1)


def test_ece_and_mce_are_those_of_torchmetrics(pixels):
    prob, label = pixels
    confidence, pred = prob.max(1)
    for bins in (10, 15):
        hist = confidence_histogram(confidence, pred == label, bins)
        for norm, found in (
            ('l1', expected_calibration_error(hist)),
            ('max', maximum_calibration_error(hist)),
        ):
            metric = MulticlassCalibrationError(CLASSES, n_bins=bins, norm=norm)
            assert float(found) == pytest.approx(float(metric(prob, label)), abs=1e-5)


def test_classwise_ece_is_the_mean_of_one_against_the_rest(pixels):
    prob, label = pixels
    found = expected_calibration_error(classwise_histogram(prob.T, label))
    for index, value in enumerate(found):
        metric = BinaryCalibrationError(n_bins=15)
        expected = metric(prob[:, index], (label == index).long())
        assert float(value) == pytest.approx(float(expected), abs=1e-4)
        bins = [[0, 0.0, 0] for _ in range(15)]
        for p, true in zip(prob[:, index].double().tolist(), (label == index).tolist()):
            row = bins[max(0, math.ceil(p * 15) - 1)]
            row[0], row[1], row[2] = row[0] + 1, row[1] + p, row[2] + true
        gaps = sum(abs(correct - summed) for _, summed, correct in bins) / len(prob)
        assert float(value) == pytest.approx(gaps, abs=1e-5)


def test_the_ece_by_hand():
    # Two bins: 3 pixels of mean confidence 0.9 with 2 correct, 1 of 0.2 that is wrong.
    hist = [[1, 0.2, 0], [3, 2.7, 2]]
    assert float(expected_calibration_error(hist)) == pytest.approx((0.2 + 0.7) / 4)
    assert float(maximum_calibration_error(hist)) == pytest.approx(0.7 / 3)
    both = expected_calibration_error(torch.tensor([hist, [[0.0, 0, 0], [1, 1, 1]]]))
    assert both.tolist() == pytest.approx([0.225, 0])


def test_nothing_has_no_error():
    empty = torch.zeros(15, 3)
    assert expected_calibration_error(empty).isnan()
    assert maximum_calibration_error(empty).isnan()
    assert area_under_risk_coverage(torch.zeros(4, 2)).isnan()
    assert mean_iou(covered_areas(torch.zeros(4, 2, 3), 0.5)).isnan()


def test_confidence_at_the_edges_and_sums_beyond_single_precision():
    hist = confidence_histogram(torch.tensor([0.0, 1.0]), torch.tensor([False, True]), 4)
    assert hist[:, 0].tolist() == [1, 0, 0, 1]
    many = torch.full((3_000_000,), 0.999)
    summed = confidence_histogram(many, torch.ones(len(many), dtype=torch.bool), 1)[0, 1]
    assert float(summed) == pytest.approx(3_000_000 * 0.999, rel=1e-6)


def test_groups_are_histograms_of_their_own(pixels):
    prob, label = pixels
    confidence, pred = prob.max(1)
    grouped = confidence_histogram(confidence, pred == label, 15, pred, CLASSES)
    for index in range(CLASSES):
        own = pred == index
        alone = confidence_histogram(confidence[own], (pred == label)[own])
        torch.testing.assert_close(grouped[index], alone)


def test_aurc_one_pixel_at_a_time(pixels):
    prob, label = pixels
    confidence, pred = prob.max(1)
    found = area_under_risk_coverage(
        by_confidence(selective_histogram(confidence, pred, label, CLASSES))
    )
    wrong = (pred != label)[confidence.argsort(descending=True)].double()
    risks = wrong.cumsum(0) / torch.arange(1, len(wrong) + 1)
    assert float(found) == pytest.approx(float(risks.mean()), rel=2e-3)


def test_pixels_of_equal_confidence_count_as_expected_of_a_random_order():
    # One bin of 3 pixels, one of them wrong: the mean over their six orders.
    hist = torch.tensor([[3.0, 2.0]])
    orders = [(1, 0, 0), (0, 1, 0), (0, 0, 1)]
    risks = [sum(order[: k + 1]) / (k + 1) for order in orders for k in range(3)]
    assert float(area_under_risk_coverage(hist)) == pytest.approx(sum(risks) / 9)
    # A network that is always right, and one that is most certain where it is wrong.
    assert float(area_under_risk_coverage(torch.tensor([[5.0, 5], [2, 2]]))) == 0
    worse, better = torch.tensor([[5.0, 5], [2, 0]]), torch.tensor([[2.0, 0], [5, 5]])
    assert area_under_risk_coverage(worse) > area_under_risk_coverage(better)


@pytest.mark.parametrize('coverage', [0.5, 0.8, 0.95, 1.0])
def test_miou_of_the_most_confident_pixels(pixels, coverage):
    prob, label = pixels
    confidence, pred = prob.max(1)
    hist = selective_histogram(confidence, pred, label, CLASSES)
    areas = covered_areas(hist, coverage)
    assert float(areas[:, 0].sum()) == pytest.approx(coverage * len(label))
    kept = confidence.argsort(descending=True)[: int(coverage * len(label))]
    expected = MulticlassJaccardIndex(CLASSES)(pred[kept], label[kept])
    assert float(mean_iou(areas)) == pytest.approx(float(expected), abs=5e-3)
    if coverage == 1:
        assert float(mean_iou(areas)) == pytest.approx(float(expected), abs=1e-6)


def test_a_bin_that_is_cut_counts_in_proportion():
    hist = torch.zeros(2, 1, 3)
    hist[0], hist[1] = torch.tensor([4.0, 4, 2]), torch.tensor([4.0, 4, 4])
    assert covered_areas(hist, 0.75)[0].tolist() == [6, 6, 5]


def test_very_confident_pixels_are_told_apart():
    confidence = torch.tensor([0.999, 0.9999, 0.99999, 1.0])
    pred = torch.zeros(4, dtype=torch.long)
    hist = selective_histogram(confidence, pred, pred, 1)
    assert int((hist[:, 0, 0] > 0).sum()) == 4


def test_classes_that_do_not_occur_do_not_count_for_the_mean_iou():
    assert float(mean_iou(torch.tensor([[2.0, 2, 1], [0, 0, 0]]))) == pytest.approx(1 / 3)


def test_certain_and_uncertain_pixels():
    entropy = torch.tensor([0.0, 0.0, 0.1, 0.5, 0.9])
    correct = torch.tensor([True, False, True, False, True])
    assert certainty_table(entropy, correct, entropy.median()).tolist() == [[1, 1], [1, 2]]


@pytest.mark.parametrize(
    'parts',
    # mIoU, ECE, p(accurate | certain), p(uncertain | wrong) and RSS as published for Cityscapes.
    [
        (0.743, 0.033, 0.912, 0.731, 0.826),
        (0.774, 0.034, 0.931, 0.797, 0.859),
        (0.658, 0.034, 0.899, 0.713, 0.789),
        (0.743, 0.027, 0.943, 0.838, 0.864),
    ],
)
def test_rss_as_published(parts):
    assert reliable_segmentation_score(*parts[:4]) == pytest.approx(parts[4], abs=1.5e-3)


def test_rss_by_hand_and_at_its_ends():
    by_hand = 5 / (2 / 0.5 + 1 / 0.75 + 1 / 0.8 + 1 / 0.4)
    assert reliable_segmentation_score(0.5, 0.25, 0.8, 0.4, (2, 1, 1, 1)) == pytest.approx(by_hand)
    assert reliable_segmentation_score(1, 0, 1, 1) == 1
    assert reliable_segmentation_score(0, 0, 1, 1) == 0
    assert reliable_segmentation_score(0.5, 0.25, 0.8, 0.0, (1, 1, 1, 0)) > 0
    assert math.isnan(reliable_segmentation_score(0.5, 0.2, 0.9, math.nan))
    with pytest.raises(ValueError, match=r'`miou` must be in \[0, 1\], got 74'):
        reliable_segmentation_score(74.3, 0.03, 0.9, 0.7)
    with pytest.raises(ValueError, match='four numbers'):
        reliable_segmentation_score(0.7, 0.03, 0.9, 0.7, (1, 1))
