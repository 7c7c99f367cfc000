"""Bands along boundaries, against plain loops and the erosion of OpenCV."""

import cv2
import numpy as np
import pytest
import torch

from mmdmt.evaluation.boundaries import boundary_areas, near_boundary


def blobs(seed, size=(23, 31), classes=3):
    rng = np.random.default_rng(seed)
    label = np.zeros(size, np.int64)
    for _ in range(8):
        y, x = rng.integers(0, size[0]), rng.integers(0, size[1])
        label[y : y + 7, x : x + 9] = rng.integers(0, classes)
    label[:3, 4:9] = 255
    return label


@pytest.mark.parametrize('distance', [1, 2, 5])
@pytest.mark.parametrize('frame', [False, True])
def test_near_boundary_one_pixel_at_a_time(distance, frame):
    label = blobs(0)
    found = near_boundary(torch.from_numpy(label), distance, frame)
    padded = np.pad(label, distance, constant_values=-1)
    for (y, x), value in np.ndenumerate(label):
        window = padded[y : y + 2 * distance + 1, x : x + 2 * distance + 1]
        other = (window != value) & (frame | (window != -1))
        assert bool(found[y, x]) == other.any(), (y, x)


def test_the_smallest_images():
    assert not near_boundary(torch.zeros(1, 1, dtype=torch.long), 5).any()
    assert near_boundary(torch.tensor([[0, 1]]), 1).all()
    assert near_boundary(torch.zeros(2, 9, dtype=torch.long), 5, frame=True).all()
    with pytest.raises(ValueError, match='`distance` must be an integer of at least 1, got 0'):
        near_boundary(torch.zeros(2, 2), 0)


def eroded_band(mask, distance):
    """A mask minus its erosion, as in the published code of boundary IoU."""
    framed = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    eroded = cv2.erode(framed, np.ones((3, 3), np.uint8), iterations=distance)
    return (mask - eroded[1:-1, 1:-1]).astype(bool)


@pytest.mark.parametrize('ratio', [0.0, 0.02, 0.1])
def test_boundary_iou_is_that_of_eroded_masks(ratio):
    truth, pred = blobs(1), blobs(2)
    pred[pred == 255] = 0
    found = boundary_areas(torch.from_numpy(pred), torch.from_numpy(truth), 3, ratio)
    distance = max(1, round(ratio * np.hypot(*truth.shape)))
    pred[truth == 255] = 255  # not compared
    for index in range(3):
        bands = [eroded_band((m == index).astype(np.uint8), distance) for m in (pred, truth)]
        expected = [bands[0].sum(), bands[1].sum(), (bands[0] & bands[1]).sum()]
        assert found[index].tolist() == expected


def test_a_perfect_prediction_has_equal_bands_also_beside_unlabeled_pixels():
    truth = blobs(3)
    pred = np.where(truth == 255, 1, truth)
    areas = boundary_areas(torch.from_numpy(pred), torch.from_numpy(truth), 3)
    assert torch.equal(areas[:, 0], areas[:, 1]) and torch.equal(areas[:, 0], areas[:, 2])
