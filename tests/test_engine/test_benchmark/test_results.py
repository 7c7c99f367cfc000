"""Statistics of the tables, by hand."""

import itertools

import numpy as np
import pytest

from mmdmt.engine.benchmark.results import bootstrap_difference, difference, score_of


def counts(correct, total):
    """(S, I, 3, 1) counts of one class, whose IoU is correct / (2 * total - correct)."""
    correct = np.asarray(correct)
    same = np.full_like(correct, total)
    return np.stack([correct, same, same], -1)[..., None]


def test_scores_are_pooled_over_images_and_leave_absent_classes_out():
    image = np.array([[2, 0, 0], [3, 1, 0], [2, 1, 0]])  # intersection, predicted, labeled
    assert score_of(image, 'mIoU') == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert score_of(image, 'mAcc') == pytest.approx(100 * (1 + 0) / 2)
    assert score_of(image, 'aAcc') == pytest.approx(100 * 2 / 3)


def test_an_equal_difference_everywhere_has_no_uncertainty():
    better, worse = counts([[8, 8], [8, 8]], 10), counts([[5, 5], [5, 5]], 10)
    low, high = bootstrap_difference(better, worse)
    assert low == high == pytest.approx(100 * (8 / 12 - 5 / 15))


@pytest.mark.parametrize('seeds', [1, 2, 3])
def test_interval_of_seeds_against_all_draws(seeds):
    """With one image only seeds are drawn: all S^S draws can be listed."""
    correct = [[9], [6], [3]][:seeds]
    method, baseline = counts(correct, 10), counts([[5]] * seeds, 10)
    values = (score_of(method[:, 0], 'mIoU') - score_of(baseline[:, 0], 'mIoU')).tolist()
    means = [np.mean(draw) for draw in itertools.product(values, repeat=seeds)]
    found = bootstrap_difference(method, baseline, draws=4000)
    # Many times over, so that there is no value between two of them.
    assert found == pytest.approx(np.percentile(means * 1000, [2.5, 97.5]))


def test_interval_of_images_against_all_draws():
    """With one seed only images are drawn, the same for both methods."""
    method, baseline = counts([[9, 2, 6]], 10), counts([[5, 3, 6]], 10)
    draws = []
    for chosen in itertools.product(range(3), repeat=3):
        sums = [each[0, list(chosen)].sum(0) for each in (method, baseline)]
        draws.append(score_of(sums[0], 'mIoU') - score_of(sums[1], 'mIoU'))
    found = bootstrap_difference(method, baseline, draws=5000, level=80)
    assert found == pytest.approx(np.percentile(draws, [10, 90]), abs=1e-9)


def test_draws_are_those_of_the_seed():
    rng = np.random.default_rng(0)
    method, baseline = (counts(rng.integers(0, 10, (3, 5)), 10) for _ in range(2))
    first = bootstrap_difference(method, baseline)
    assert bootstrap_difference(method, baseline) == first
    assert bootstrap_difference(method, baseline, seed=1) != first
    with pytest.raises(ValueError, match='are compared with'):
        bootstrap_difference(method, baseline[:2])


def test_difference_pairs_the_same_seeds_and_images():
    def record(correct, names=('a', 'b')):
        images = [
            dict(name=n, intersect=[c], pred=[10], label=[10]) for n, c in zip(names, correct)
        ]
        total = sum(correct)
        return dict(images=images, metrics=dict(mIoU=100 * total / (40 - total)), file='f.json')

    own = {(0, 0): record([8, 6]), (0, 1): record([9, 9]), (0, 2): record([1, 1])}
    # In another order, and without the last seed.
    base = {(0, 0): record([4, 5], 'ba'), (0, 1): record([6, 7])}
    found = difference(own, base, 'mIoU')
    expected = [100 * (14 / 26 - 9 / 31), 100 * (18 / 22 - 13 / 27)]
    assert found['values'] == pytest.approx(expected)
    assert found['mean'] == pytest.approx(np.mean(expected))
    assert found['seeds'] == [[0, 0], [0, 1]]
    assert found['low'] <= found['mean'] <= found['high']
    assert difference(own, {}, 'mIoU') is None
    with pytest.raises(ValueError, match=r'f\.json is not of the images of the baseline'):
        difference({(0, 0): record([1, 1], 'ac')}, base, 'mIoU')
