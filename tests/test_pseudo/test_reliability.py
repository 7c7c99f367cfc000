import json

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from tiny_models import tiny_segmentor
from tiny_project import base_config, make_tree

from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo.reliability import ReliabilityRanker, agreement
from mmdmt.registry import DATASETS


@pytest.fixture(autouse=True)
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def mean_iou(one, two, num_classes):
    """Straight from the definition, with sets of pixels."""
    ious = []
    for index in range(num_classes):
        a, b = (set(np.flatnonzero(np.asarray(labels) == index)) for labels in (one, two))
        if a | b:
            ious.append(len(a & b) / len(a | b))
    return sum(ious) / len(ious)


def test_agreement_is_the_mean_iou_of_the_classes_that_occur():
    generator = torch.Generator().manual_seed(0)
    for classes in (1, 3, 7):
        one, two = torch.randint(0, classes, (2, 9, 11), generator=generator)
        assert agreement(one, two, 8) == pytest.approx(mean_iou(one, two, 8))
        assert agreement(one, one, 8) == 1
    one, two = torch.zeros(4, 4, dtype=torch.long), torch.full((4, 4), 3)
    assert agreement(one, two, 4) == 0
    two = one.clone()
    two[0, 0] = 2  # of 21 classes only 0 (15 / 16) and 2 (0 / 1) count
    assert agreement(one, two, 21) == pytest.approx((15 / 16 + 0) / 2)
    one[1], two[1] = 255, 255  # not measured
    assert agreement(one, two, 21) == pytest.approx((11 / 12 + 0) / 2)
    assert agreement(one[1], two[1], 21) == 0


@pytest.fixture
def setting(tmp_path):
    """Arguments of a ranker and its three networks, the last one last."""
    tree = make_tree(tmp_path / 'tree', unlabeled=5)
    dataset = base_config(tree, tmp_path)['train_dataloader']['dataset']['datasets'][1]
    dataset['pipeline'] = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    models, paths = [], []
    for index in range(3):
        torch.manual_seed(index)
        model = build_segmentor(tiny_segmentor()).eval()
        model.decode_head.conv_seg.weight.data.mul_(100)  # so that classes differ
        models.append(model)
        paths.append(str(tmp_path / f'iter_{index}.pth'))
        torch.save(dict(state_dict=model.state_dict()), paths[-1])
    arguments = dict(model=tiny_segmentor(), dataset=dataset, num_workers=0, checkpoints=paths)
    return arguments, models


def labels_of(model, sample):
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    data = model.data_preprocessor(batch, False)
    with torch.no_grad():
        return model.predict(data['inputs'], data['data_samples'])[0].seg_logits.data.argmax(0)


def expected(setting, columns=slice(None)):
    arguments, models = setting
    dataset, found = DATASETS.build(arguments['dataset']), {}
    for index in range(len(dataset)):
        first, second, last = (labels_of(model, dataset[index]) for model in models)
        first, second, last = (label[:, columns] for label in (first, second, last))
        scores = [mean_iou(label, last, last.max() + 10) for label in (first, second)]
        found[dataset.get_data_info(index)['name']] = sum(scores) / 2
    return found


@pytest.mark.parametrize('batch_size', [1, 2])
def test_reliability_is_the_mean_agreement_of_earlier_checkpoints_with_the_last(
    setting, tmp_path, batch_size
):
    out = tmp_path / 'out'
    ranking = ReliabilityRanker(str(out), **setting[0], batch_size=batch_size).run()
    scores = expected(setting)
    assert dict(ranking) == pytest.approx(scores)
    assert len({round(score, 6) for score in scores.values()}) == 5
    assert [name for name, _ in ranking] == sorted(scores, key=scores.get, reverse=True)
    upper = [name for name, _ in ranking[:2]]  # half of five, rounded down
    assert (out / 'reliable.txt').read_text().split() == upper
    assert json.loads((out / 'reliability.json').read_text())['images'] == list(map(list, ranking))


def without_eight_columns(results):
    results['nodata_map'] = np.zeros(results['img'].shape[:2], np.uint8)
    results['nodata_map'][:, :8] = 1
    return results


def test_what_was_not_measured_does_not_count(setting, tmp_path):
    pipeline = setting[0]['dataset']['pipeline']
    pipeline[1:] = [without_eight_columns, dict(type='mmdmt.PackSemiInputs')]
    found = dict(ReliabilityRanker(out=str(tmp_path), batch_size=1, **setting[0]).run())
    assert found == pytest.approx(expected(setting, slice(8, None)))
    assert found != pytest.approx(expected(setting))


def test_a_finished_ranking_is_kept_and_that_of_other_checkpoints_is_not(
    setting, tmp_path, monkeypatch
):
    arguments, _ = setting
    out = str(tmp_path / 'out')
    ranking = ReliabilityRanker(out, **arguments).run()
    calls = []
    scores = ReliabilityRanker._scores
    monkeypatch.setattr(
        ReliabilityRanker, '_scores', lambda *args: calls.append(1) or scores(*args)
    )
    assert ReliabilityRanker(out, **arguments).run() == ranking and not calls
    (tmp_path / 'out' / 'reliable.txt').unlink()
    assert ReliabilityRanker(out, **arguments).run() == ranking and len(calls) == 1
    others = dict(arguments, checkpoints=arguments['checkpoints'][::-1])
    assert ReliabilityRanker(out, **others).run() != ranking and len(calls) == 2


def test_one_checkpoint_is_refused(setting, tmp_path):
    arguments = dict(setting[0], checkpoints=['last.pth'])
    with pytest.raises(ValueError, match=r'number of checkpoints.*at least 2, got 1'):
        ReliabilityRanker(str(tmp_path), **arguments)
