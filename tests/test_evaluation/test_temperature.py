"""The temperature that is fitted, and the sample that it is fitted to."""

import pytest
import torch
from scipy.optimize import minimize_scalar

from mmdmt.evaluation import TemperatureMetric
from mmdmt.evaluation.temperature import LIMITS, fit_temperature


def overconfident(factor, count=20_000, classes=4, seed=0):
    """Logits whose true classes were drawn from softmax(logits / factor)."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(classes, count, generator=generator) * 2
    label = torch.multinomial(logits.softmax(0).T, 1, generator=generator)[:, 0]
    return logits * factor, label


def nll(logits, label, temperature):
    return torch.nn.functional.cross_entropy(logits.T.double() / temperature, label).item()


@pytest.mark.parametrize('factor', [0.3, 1.0, 4.0])
def test_it_is_the_minimum_that_scipy_finds(factor):
    logits, label = overconfident(factor)
    found = fit_temperature([logits], [label])
    best = minimize_scalar(
        lambda t: nll(logits, label, t), bounds=LIMITS, method='bounded', options=dict(xatol=1e-7)
    )
    assert found == pytest.approx(best.x, rel=1e-4)
    assert found == pytest.approx(factor, rel=0.05)


def test_pixels_count_by_their_weight():
    first, second = overconfident(1.0), overconfident(4.0, seed=1)
    parts = list(zip(first, second))
    doubled = [(*pair, pair[0]) for pair in parts]
    weighted = fit_temperature(*parts, weights=[2, 1])
    assert weighted == pytest.approx(fit_temperature(*doubled), rel=1e-5)
    assert weighted < fit_temperature(*parts)


def test_the_best_temperature_may_lie_beyond_the_limits():
    label = torch.arange(100) % 3
    right = torch.nn.functional.one_hot(label, 3).T.float()
    assert fit_temperature([right], [label]) == pytest.approx(LIMITS[0], rel=1e-3)
    assert fit_temperature([-right], [label]) == pytest.approx(LIMITS[1], rel=1e-3)
    with pytest.raises(ValueError, match='no pixel'):
        fit_temperature([right[:, :0]], [label[:0]])


def samples(count=6, size=(40, 50), factor=3.0):
    for index in range(count):
        logits, label = overconfident(factor, size[0] * size[1], seed=index)
        label = label.view(1, *size)
        label[:, : 2 * index] = 255
        data = logits.view(-1, *size)
        yield dict(
            img_path=f'{index}.png',
            seg_logits=dict(data=data),
            pred_sem_seg=dict(data=data.argmax(0, keepdim=True)),
            gt_sem_seg=dict(data=label),
        )


def evaluated(**settings):
    metric = TemperatureMetric(**settings)
    metric.dataset_meta = dict(classes=list('abcd'))
    for sample in samples():
        metric.process({}, [sample])
    kept = sum(each[0].numel() for each in metric.results)
    return metric.evaluate(6)['temperature'], kept


def test_a_sample_tells_what_all_pixels_do_and_is_drawn_again():
    every = list(samples())
    known = [sample['gt_sem_seg']['data'].flatten() != 255 for sample in every]
    logits = [s['seg_logits']['data'].flatten(1)[:, k] for s, k in zip(every, known)]
    labels = [s['gt_sem_seg']['data'].flatten()[k] for s, k in zip(every, known)]
    exact = fit_temperature(logits, labels)
    assert evaluated(pixels=10_000)[0] == pytest.approx(exact, rel=1e-5)
    found, kept = evaluated(pixels=500)
    assert kept == 6 * 500 * 4
    assert found == pytest.approx(exact, rel=0.1) and found != exact
    assert evaluated(pixels=500)[0] == found
    assert evaluated(pixels=500, seed=1)[0] != found


def test_memory_is_bounded():
    found, kept = evaluated(pixels=2000, limit=10_000)
    assert 2_500 < kept <= 10_000
    assert found == pytest.approx(3, rel=0.15)
