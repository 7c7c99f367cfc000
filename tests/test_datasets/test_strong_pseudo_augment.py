import numpy as np
import pytest
import torch

from mmdmt.datasets import StrongPseudoAugment
from mmdmt.datasets.semi_dataset import seeded
from mmdmt.models.losses.functional import dynamic_self_loss

PLAIN = dict(type='mmdmt.StrongAugment', jitter_prob=0.0, gray_prob=0.0, blur_prob=0.0)
SIZE = (40, 60)


def sample(value=100):
    return dict(
        img=np.full((*SIZE, 3), (value, value + 20, value + 40), np.uint8),
        gt_seg_map=np.ones(SIZE, np.uint8),
        pseudo_confidence=np.full(SIZE, 0.75, np.float32),
    )


def augment(seed=0, results=None, **settings):
    with seeded(seed):
        return StrongPseudoAugment(**settings).transform(results or sample())


@pytest.mark.parametrize('seed', range(5))
def test_the_hole_is_a_box_of_noise_without_label(seed):
    results = augment(seed, strong=PLAIN, cutout=dict(prob=1.0))
    hole = results['gt_seg_map'] == 255
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    height, width = len(rows), len(columns)
    assert hole.sum() == height * width and 0.01 < hole.mean() < 0.41
    assert 0.2 < height / width < 4
    noise = results['img'][hole]
    assert noise.std() > 50 and abs(noise.mean() - 127.5) < 25
    assert np.array_equal(results['img'][~hole], sample()['img'][~hole])
    assert (results['gt_seg_map'][~hole] == 1).all()
    assert (results['pseudo_confidence'] == np.where(hole, 0, np.float32(0.75))).all()


def test_the_hole_is_not_learned():
    results = augment(strong=PLAIN, cutout=dict(prob=1.0))
    label = torch.from_numpy(results['gt_seg_map'])[None]
    logits = torch.randn(1, 3, *SIZE, requires_grad=True)
    loss, _ = dynamic_self_loss(logits, label, torch.tensor([True]), gamma=0.0)
    loss.backward()
    assert torch.equal((logits.grad != 0).any(dim=1), label != 255)
    kept = label != 255
    expected = -logits.log_softmax(1)[:, 1][kept].mean()  # plain cross entropy of the others
    torch.testing.assert_close(loss, expected)


def test_without_cutout_only_colors_change():
    results = augment(cutout=dict(prob=0.0))
    assert (results['gt_seg_map'] == 1).all() and results['img'].dtype == np.uint8
    assert not np.array_equal(results['img'], sample()['img'])


def test_half_of_the_images_have_a_hole_and_stored_arrays_stay_as_they_are():
    results = sample()
    holes = 0
    for seed in range(60):
        holes += (augment(seed, dict(results), strong=PLAIN)['gt_seg_map'] == 255).any()
    assert 15 < holes < 45
    assert (results['gt_seg_map'] == 1).all() and (results['pseudo_confidence'] == 0.75).all()


def test_colors_are_changed_in_rgb():
    """Gray has the luminance of the right channels."""
    gray = dict(PLAIN, gray_prob=1.0)
    image = augment(strong=gray, cutout=dict(prob=0.0))['img'][0, 0]
    blue, green, red = sample()['img'][0, 0].astype(float)
    assert image.tolist() == [round(0.299 * red + 0.587 * green + 0.114 * blue)] * 3


def test_the_same_seed_gives_the_same_sample():
    one, two = augment(3), augment(3)
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match=r'StrongPseudoAugment\.cutout'):
        StrongPseudoAugment(cutout=dict(size=3))
