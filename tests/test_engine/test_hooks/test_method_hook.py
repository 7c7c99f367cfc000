from types import SimpleNamespace

import pytest
from mmengine.config import Config
from tiny_models import tiny_segmentor
from torch import nn

from mmdmt.datasets import MultiSourceSampler
from mmdmt.engine.hooks import MethodHook
from mmdmt.files import shipped_dir
from mmdmt.models.methods import MeanTeacher


def runner(model, accumulate=1, max_iters=100, sampler=None):
    return SimpleNamespace(
        model=model,
        optim_wrapper=SimpleNamespace(_accumulative_counts=accumulate),
        max_iters=max_iters,
        iter=0,
        train_dataloader=SimpleNamespace(sampler=sampler),
    )


class Sources(list):
    cumulative_sizes = [10, 100]


def test_the_model_learns_how_long_the_run_and_a_pass_are():
    sampler = MultiSourceSampler(Sources(range(100)), batch_size=4, source_ratio=[1, 1], seed=0)
    model = MeanTeacher(tiny_segmentor())
    MethodHook().before_train(runner(model, sampler=sampler))
    assert (model.max_iters, model.pass_iters) == (100, [5, 45])
    MethodHook().before_train(runner(model, accumulate=4, max_iters=10, sampler=sampler))
    assert (model.max_iters, model.pass_iters) == (3, [2, 12])


def test_another_sampler_tells_no_passes():
    model = MeanTeacher(tiny_segmentor())
    MethodHook().before_train(runner(model))
    assert (model.max_iters, model.pass_iters) == (100, [])


@pytest.mark.parametrize(('accumulate', 'steps'), [(1, 10), (4, 3)])
def test_the_model_follows_the_optimizer(accumulate, steps):
    model = MeanTeacher(tiny_segmentor())
    for iteration in range(10):
        MethodHook().after_train_iter(runner(model, accumulate, max_iters=10), iteration)
    assert model.step == steps  # with 4: after iterations 4, 8 and, cut short, 10


def test_a_plain_model_is_left_alone():
    plain = runner(nn.Linear(1, 1))
    MethodHook().before_train(plain)
    MethodHook().after_train_iter(plain, 0)
    assert not hasattr(plain.model, 'max_iters')


def test_setting_custom_hooks_keeps_it(tmp_path):
    base = shipped_dir('configs') / '_base_' / 'default_runtime.py'
    child = tmp_path / 'child.py'
    child.write_text(f"_base_ = '{base}'\ncustom_hooks = [dict(type='EmptyCacheHook')]\n")
    hooks = Config.fromfile(child).default_hooks
    assert 'mmdmt.MethodHook' in [hook['type'] for hook in hooks.values()]


@pytest.mark.parametrize('ratio', [[1, 0], [0, 1]])
def test_a_method_without_labeled_or_unlabeled_images_is_refused(ratio):
    sampler = MultiSourceSampler(Sources(range(100)), batch_size=4, source_ratio=ratio, seed=0)
    with pytest.raises(ValueError, match=r'MeanTeacher learns from .*set `source_ratio`'):
        MethodHook().before_train(runner(MeanTeacher(tiny_segmentor()), sampler=sampler))


def test_a_method_on_a_single_source_is_refused():
    sampler = MultiSourceSampler(range(9), batch_size=4, source_ratio=[1], seed=0)
    with pytest.raises(ValueError, match=r'batches have \[4\] of the sources'):
        MethodHook().before_train(runner(MeanTeacher(tiny_segmentor()), sampler=sampler))
