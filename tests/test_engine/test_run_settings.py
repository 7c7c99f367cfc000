"""Settings that would fail only at the first validation, or never be noticed."""

import pytest
import torch
from mmengine.config import Config
from mmpretrain.evaluation import Accuracy
from mmseg.evaluation import IoUMetric
from tiny_models import tiny_segmentor
from tiny_project import base_config, load_config, make_tree, mean_teacher

from mmdmt.engine.run_settings import IOU_METRICS, check_run, metric_names
from mmdmt.registry import RUNNERS

pytestmark = pytest.mark.usefixtures('unformatted_configs')


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def runner_of(tree, work_dir, change, method=mean_teacher):
    cfg = Config(method(base_config(tree, work_dir)))
    cfg.merge_from_dict(change)
    return RUNNERS.build(load_config(cfg.to_dict(), work_dir / 'config.py'))


@pytest.mark.parametrize('iou_metrics', [[name] for name in IOU_METRICS] + [list(IOU_METRICS)])
@pytest.mark.parametrize('prefix', [None, 'val'])
def test_names_are_those_that_mmseg_gives(iou_metrics, prefix):
    settings = dict(iou_metrics=iou_metrics, prefix=prefix)
    metric = IoUMetric(**settings)
    metric.dataset_meta = dict(classes=['a', 'b'])
    metric.results.append([torch.tensor([2.0, 1.0])] * 4)
    named = metric_names([dict(type='mmseg.IoUMetric', **settings)], 'val_evaluator')
    assert set(named) == set(metric.evaluate(1))


@pytest.mark.parametrize('topk', [1, (1, 5)])
def test_names_are_those_that_mmpretrain_gives(topk):
    metric = Accuracy(topk=topk)
    metric.results.append(dict(pred_score=torch.eye(6)[0], gt_label=torch.tensor([0])))
    assert list(metric.evaluate(1)) == metric_names(dict(type='Accuracy', topk=topk), 'x')


def test_other_metrics_are_not_judged():
    own = dict(type='CityscapesMetric')
    assert metric_names([dict(type='IoUMetric'), own], 'val_evaluator') is None
    hooks = dict(checkpoint=dict(save_best='any'))
    check_run(Config(dict(val_evaluator=own, default_hooks=hooks)))


@pytest.mark.parametrize('best', ['auto', 'mIoU', ['aAcc', 'mAcc'], None])
def test_metrics_that_exist_are_accepted(best):
    hooks = dict(checkpoint=dict(save_best=best))
    check_run(Config(dict(val_evaluator=dict(type='IoUMetric'), default_hooks=hooks)))


def test_the_best_may_be_that_of_a_network_where_several_are_validated():
    hooks = dict(checkpoint=dict(save_best='student/mIoU'))
    cfg = Config(dict(val_evaluator=dict(type='IoUMetric'), default_hooks=hooks))
    with pytest.raises(ValueError, match='student/mIoU'):
        check_run(cfg)
    cfg.val_cfg = dict(type='mmdmt.NetworksValLoop')
    check_run(cfg)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            {'default_hooks.checkpoint.save_best': 'miou'},
            r"save_best` is 'miou'.*gives \['aAcc', 'mIoU', 'mAcc'\] \(is 'mIoU' meant\?\)",
        ),
        ({'default_hooks.checkpoint.save_best': ['mIoU', 'mDice']}, "save_best` is 'mDice'"),
        (
            {'val_evaluator.iou_metrics': ['mIou']},
            r"`val_evaluator\.iou_metrics` has 'mIou'.*is 'mIoU' meant",
        ),
        ({'optim_wrapper.optimizer.lr': '0.01'}, r"optimizer\.lr`.*'0\.01', a str: give a number"),
        ({'train_cfg.max_iters': '8'}, r"train_cfg\.max_iters='8' must be an integer"),
    ],
)
def test_a_wrong_setting_is_refused_before_training(tree, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        runner_of(tree, tmp_path, change).train()
    assert not list(tmp_path.rglob('*.pth'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'model.threshold': '0.9'}, r"`threshold`.*got '0\.9', a str"),
        ({'model.unsup_weight': '1'}, r"`unsup_weight`.*got '1', a str"),
        ({'model.ema': dict(momentum='0.9')}, r"`ema\.momentum`.*'0\.9', a str"),
        ({'model.ema': dict(momentun=0.9)}, r"`ema`.*'momentun'.*is 'momentum' meant"),
        ({'model.normalizer': ['all']}, r"`normalizer` must be one of.*\['all'\]"),
    ],
)
def test_a_setting_of_the_wrong_type_is_refused_by_name(tree, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        runner_of(tree, tmp_path, change)


@pytest.mark.parametrize('count', [3, 5])
@pytest.mark.parametrize('action', ['train', 'test'])
def test_a_head_for_another_number_of_classes_is_refused(tree, tmp_path, count, action):
    segmentor = dict(tiny_segmentor(num_classes=count))
    segmentor['data_preprocessor'] = base_config(tree, tmp_path)['model']['data_preprocessor']
    cfg = mean_teacher(dict(base_config(tree, tmp_path), model=segmentor))
    runner = RUNNERS.build(load_config(cfg, tmp_path / 'config.py'))
    head = r'`model\.student\.decode_head\.num_classes` is'
    with pytest.raises(ValueError, match=rf'{head} {count}, .*4 classes \(a, b, c, d\): set'):
        getattr(runner, action)()
