"""Means over some classes, against plain arithmetic."""

import pytest
import torch
from mmengine.registry import METRICS

from mmdmt.engine.run_settings import metric_names
from mmdmt.evaluation import IoUOfClasses

CLASSES = ('road', 'truck', 'car', 'wall')


def evaluated(label, prediction, **settings):
    metric = IoUOfClasses(**settings)
    metric.dataset_meta = dict(classes=CLASSES)
    samples = [
        dict(gt_sem_seg=dict(data=torch.tensor(a)), pred_sem_seg=dict(data=torch.tensor(b)))
        for a, b in zip(label, prediction)
    ]
    metric.process({}, samples)
    found = metric.evaluate(len(samples))
    assert metric.dataset_meta['classes'] == CLASSES
    return found


def test_the_mean_is_over_the_named_classes_and_every_labeled_pixel_counts():
    label = [[[0, 0, 1, 1, 255]], [[2, 2, 2, 3, 255]]]
    prediction = [[[0, 0, 2, 0, 2]], [[2, 2, 3, 3, 3]]]
    found = evaluated(
        label, prediction, classes=['car', 'road', 'wall'], also=dict(mIoU_2=['road', 'car'])
    )
    road, car, wall = 2 / 3, 2 / 4, 1 / 2  # the truck was taken for a car and for the road
    assert found['mIoU'] == pytest.approx(100 * (road + car + wall) / 3, abs=0.01)
    assert found['mIoU_2'] == pytest.approx(100 * (road + car) / 2, abs=0.01)
    assert found['mAcc'] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3, abs=0.01)


def test_a_class_without_a_pixel_is_left_out_or_counts_as_0():
    """As mmseg, or as the released code of UniMatch: a difference of 1 / C of the mean."""
    images = [[[0, 0, 2, 2]]], [[[0, 0, 2, 2]]]
    settings = dict(classes=['road', 'car', 'wall'], also=dict(mIoU_2=['road', 'wall']))
    found = evaluated(*images, **settings)
    assert found['mIoU'] == found['mIoU_2'] == 100
    found = evaluated(*images, **settings, nan_to_num=0)
    assert found['mIoU'] == pytest.approx(100 * 2 / 3, abs=0.01)
    assert found['mIoU_2'] == pytest.approx(100 / 2, abs=0.01)


def test_a_class_that_the_dataset_lacks_is_refused_before_anything_is_evaluated():
    metric = IoUOfClasses(classes=['road'], also=dict(mIoU_x=['sky']))
    with pytest.raises(ValueError, match=r'averages over sky, but the dataset has .*road'):
        metric.dataset_meta = dict(classes=CLASSES)


def test_configs_name_it_and_what_it_gives():
    config = dict(type='mmdmt.IoUOfClasses', classes=['road'], also=dict(mIoU_x=['car']))
    assert metric_names(config, 'val_evaluator') == ['aAcc', 'mIoU', 'mAcc', 'mIoU_x']
    assert isinstance(METRICS.build(config), IoUOfClasses)
