"""What is recorded, against mmseg's metric and plain counting."""

import json

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.registry import METRICS
from mmseg.evaluation import IoUMetric

from mmdmt.evaluation import RecordMetric

CLASSES = ('road', 'car', 'wall', 'never')


def samples_of(labels, predictions):
    return [
        dict(
            gt_sem_seg=dict(data=torch.tensor(label)[None]),
            pred_sem_seg=dict(data=torch.tensor(prediction)[None]),
            img_path=f'img/{index}.png',
        )
        for index, (label, prediction) in enumerate(zip(labels, predictions))
    ]


def recorded(path, samples, classes=CLASSES, **settings):
    metric = RecordMetric(out_file=path, **settings)
    metric.dataset_meta = dict(classes=classes)
    metric.process({}, samples)
    return metric.evaluate(len(samples)), json.loads(path.read_text())


def test_counts_of_an_image_by_hand(tmp_path):
    samples = samples_of([[[0, 0, 1], [2, 255, 1]]], [[[0, 1, 1], [2, 2, 0]]])
    found, record = recorded(tmp_path / 'r.json', samples, facts=dict(network='teacher'))
    assert record['images'] == [
        dict(name='img/0.png', intersect=[1, 1, 1, 0], pred=[2, 2, 1, 0], label=[2, 2, 1, 0])
    ]
    assert record['confusion'] == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert record['per_class']['IoU'] == [pytest.approx(100 / 3), pytest.approx(100 / 3), 100, None]
    assert record['metrics']['mIoU'] == pytest.approx((100 / 3 + 100 / 3 + 100) / 3)
    assert record['metrics']['aAcc'] == pytest.approx(60)
    assert record['network'] == 'teacher' and record['classes'] == list(CLASSES)
    assert found['record/mIoU'] == record['metrics']['mIoU']


def test_metrics_are_those_of_mmseg(tmp_path):
    rng = np.random.default_rng(0)
    labels, predictions = rng.integers(0, 3, (2, 5, 20, 30))
    labels[rng.random(labels.shape) < 0.1] = 255
    samples = samples_of(labels, predictions)
    evaluator = Evaluator([RecordMetric(tmp_path / 'r.json'), IoUMetric()])
    evaluator.dataset_meta = dict(classes=CLASSES)
    evaluator.process(samples)
    found = evaluator.evaluate(len(samples))  # both stand in one evaluator
    for name in ('mIoU', 'aAcc', 'mAcc'):
        assert found[f'record/{name}'] == pytest.approx(found[name], abs=0.006)


def test_padded_images_of_a_last_batch_do_not_count(tmp_path):
    samples = samples_of([[[0]], [[1]], [[0]]], [[[0]], [[0]], [[0]]])
    metric = RecordMetric(tmp_path / 'r.json')
    metric.dataset_meta = dict(classes=CLASSES)
    metric.process({}, samples)
    metric.evaluate(2)  # of a dataset of two images
    assert len(json.loads((tmp_path / 'r.json').read_text())['images']) == 2


def test_an_image_of_a_classifier_is_a_pixel(tmp_path):
    samples = [
        dict(pred_label=torch.tensor([p]), gt_label=torch.tensor([t]), img_path=str(i))
        for i, (t, p) in enumerate([(0, 0), (1, 0), (1, 1), (2, 2)])
    ]
    _, record = recorded(tmp_path / 'r.json', samples)
    assert record['metrics']['aAcc'] == 75
    assert record['per_class']['Acc'] == [100, 50, 100, None]


def test_a_value_that_is_no_class_is_refused_with_its_image():
    metric = RecordMetric()
    metric.dataset_meta = dict(classes=CLASSES)
    with pytest.raises(ValueError, match=r'label of img/0\.png has the value 7, .* 4 classes'):
        metric.process({}, samples_of([[[7]]], [[[0]]]))
    with pytest.raises(ValueError, match=r'prediction of img/0\.png has the value 4'):
        metric.process({}, samples_of([[[1]]], [[[4]]]))


def test_configs_name_it():
    assert isinstance(METRICS.build(dict(type='mmdmt.RecordMetric')), RecordMetric)
