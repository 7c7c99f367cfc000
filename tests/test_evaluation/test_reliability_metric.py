"""The metric against all pixels at once, on what all kinds of segmentors predict."""

import copy
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from evaluate_together import CLASSES, IMAGES, evaluate, image
from forked_tool import forked_ranks
from mmengine.config import ConfigDict
from mmengine.registry import METRICS, DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from tiny_models import NUM_CLASSES, tiny_segformer, tiny_segmentor
from torchmetrics.classification import MulticlassCalibrationError

from mmdmt.engine.run_settings import metric_names
from mmdmt.evaluation import ReliabilityMetric, reliability_metric, reliable_segmentation_score
from mmdmt.evaluation.boundaries import near_boundary
from mmdmt.finite import NonFiniteError
from mmdmt.registry import MODELS

HERE = Path(__file__).resolve().parents[1]
SETTINGS = dict(trimap_width=2)


def images(count=IMAGES):
    return [image(index) for index in range(count)]


def pixels_of(samples, region=None, width=2):
    """Logits (n, C) and labels (n,) of the known pixels of a region, and certainty (n,)."""
    logits, labels, certain = [], [], []
    for sample in samples:
        label = sample['gt_sem_seg']['data'][0]
        known = label != 255
        band = near_boundary(label, width)
        chosen = known if region is None else known & (band if region == 'boundary' else ~band)
        each = sample['seg_logits']['data'].double().permute(1, 2, 0)
        entropy = torch.distributions.Categorical(logits=each).entropy()
        logits.append(each[chosen])
        labels.append(label[chosen])
        certain.append((entropy <= entropy[known].median() + 1e-6)[chosen])
    return torch.cat(logits), torch.cat(labels), torch.cat(certain)


@pytest.mark.parametrize('region', [None, 'boundary', 'interior'])
def test_against_all_pixels_at_once(region):
    found = evaluate(images(), **SETTINGS)
    logits, label, certain = pixels_of(images(), region)
    suffix = f'_{region}' if region else ''
    prob, correct = logits.softmax(1), logits.argmax(1) == label
    one_hot = F.one_hot(label, CLASSES)
    expected = dict(
        ECE=float(MulticlassCalibrationError(CLASSES)(prob.float(), label)),
        MCE=float(MulticlassCalibrationError(CLASSES, norm='max')(prob.float(), label)),
        NLL=float(F.cross_entropy(logits, label)),
        Brier=float((prob - one_hot).square().sum(1).mean()),
        acc_certain=float(correct[certain].double().mean()),
        unc_wrong=float((~certain)[~correct].double().mean()),
    )
    for key, value in expected.items():
        assert found[key + suffix] == pytest.approx(value, abs=2e-4), key
    pred = logits.argmax(1)
    ious = [
        float(((pred == c) & (label == c)).sum() / ((pred == c) | (label == c)).sum())
        for c in range(CLASSES)
    ]
    score = reliable_segmentation_score(
        sum(ious) / CLASSES, expected['ECE'], expected['acc_certain'], expected['unc_wrong']
    )
    assert found[f'RSS{suffix}'] == pytest.approx(score, abs=2e-4)
    if region == 'boundary':
        assert found['TrimapIoU'] == pytest.approx(100 * sum(ious) / CLASSES)


def test_the_iou_of_all_pixels_is_that_of_mmseg():
    metric = IoUMetric()
    metric.dataset_meta = dict(classes=list('abcd'))
    metric.process({}, images())
    expected = metric.evaluate(IMAGES)
    found = evaluate(images(), coverages=[1.0])
    assert found['mIoU@100'] == pytest.approx(expected['mIoU'], abs=0.01)
    assert not set(found) & set(expected)  # an evaluator refuses metrics of the same name


def test_the_work_is_cut_into_chunks_without_a_difference(monkeypatch):
    whole = evaluate(images(), **SETTINGS)
    monkeypatch.setattr(reliability_metric, '_CHUNK', 500)
    assert evaluate(images(), **SETTINGS) == pytest.approx(whole, rel=1e-6)


def test_memory_does_not_grow_with_images():
    metric = ReliabilityMetric()
    metric.dataset_meta = dict(classes=list('abcd'))

    def size():
        metric.process({}, images(1))
        parts = [*metric._total.values(), *metric._last.values()]
        return sum(each.numel() for each in parts), len(metric.results)

    size()
    assert size() == size() == size()


def test_half_precision_is_evaluated_in_single():
    samples = images()
    for sample in samples:
        sample['seg_logits']['data'] = sample['seg_logits']['data'].bfloat16()
        sample['pred_sem_seg']['data'] = sample['seg_logits']['data'].argmax(0, keepdim=True)
    assert evaluate(samples)['ECE'] == pytest.approx(evaluate(images())['ECE'], abs=0.01)


def test_two_processes_give_what_one_does_and_a_repeated_image_counts_once(tmp_path):
    ranks = forked_ranks(
        HERE / 'evaluate_together.py', tmp_path, log=tmp_path / 'log', PYTHONPATH=str(HERE)
    )
    for rank in ranks:
        rank.finish()
    found = [json.loads((tmp_path / f'{rank}.json').read_text()) for rank in range(2)]
    assert [each['indices'] for each in found] == [[0, 2, 4], [1, 3, 0]]
    expected = evaluate(images(), **SETTINGS)
    for each in found:
        assert each['metrics'] == pytest.approx(expected)
    assert expected['NLL'] != pytest.approx(evaluate([*images(), image(0)], **SETTINGS)['NLL'])


def test_the_file(tmp_path):
    path = tmp_path / 'evaluation.json'
    path.write_text(json.dumps(dict(network='teacher')))
    found = evaluate(images(), out_file=str(path), **SETTINGS)
    content = json.loads(path.read_text())
    assert content['network'] == 'teacher'
    stored = content['reliability']
    assert stored['metrics'] == pytest.approx(found)
    assert stored['bins'] == len(stored['count']) == len(stored['accuracy']) == 15
    logits, label, _ = pixels_of(images())
    assert stored['pixels'] == sum(stored['count']) == len(label) and stored['images'] == IMAGES
    gaps = [
        count * abs(accuracy - confidence)
        for count, accuracy, confidence in zip(
            stored['count'], stored['accuracy'], stored['confidence']
        )
        if count
    ]
    assert sum(gaps) / len(label) == pytest.approx(found['ECE'])
    # Bins below 1 / 4 hold nothing.
    assert stored['accuracy'][0] is stored['confidence'][0] is None
    error = float((logits.argmax(1) != label).double().mean())
    assert stored['risk_coverage']['risk'][-1] == pytest.approx(error)
    per_class = stored['per_class']
    assert sum(per_class['cwECE']) / CLASSES == pytest.approx(found['cwECE'])
    assert sum(per_class['BoundaryIoU']) / CLASSES == pytest.approx(found['BoundaryIoU'])


def test_images_without_a_known_pixel():
    empty = image(7)
    empty['gt_sem_seg']['data'].fill_(255)
    assert evaluate([*images(), empty], **SETTINGS) == pytest.approx(evaluate(images(), **SETTINGS))
    found = evaluate([empty], **SETTINGS)
    assert all(math.isnan(value) for value in found.values())
    assert all(math.isnan(value) for value in evaluate([], 0).values())


def test_a_temperature_makes_overconfident_logits_calibrated():
    before, after = evaluate(images()), evaluate(images(), temperature=3.0)
    assert after['ECE'] < before['ECE'] and after['NLL'] < before['NLL']
    samples = images()
    for sample in samples:
        sample['seg_logits']['data'] /= 3
    assert evaluate(samples) == pytest.approx(after)


def test_names_are_known_before_the_run():
    for settings in (dict(), dict(trimap_width=3, coverages=[0.5]), dict(boundary_ratio=None)):
        config = dict(type='mmdmt.ReliabilityMetric', **settings)
        assert isinstance(METRICS.build(copy.deepcopy(config)), ReliabilityMetric)
        assert metric_names(config, 'val_evaluator') == list(evaluate(images(1), **settings))


@pytest.mark.parametrize(
    ('settings', 'message'),
    [
        (dict(num_bins=0), '`num_bins` must be an integer of at least 1'),
        (dict(coverages=[80]), '`coverages` must be in'),
        (dict(trimap_width=0), '`trimap_width` must be'),
        (dict(boundary_ratio=2), '`boundary_ratio` must be in'),
        (dict(temperature=0), '`temperature` must be in'),
        (dict(weights=[1, 2]), '`weights` must be four'),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ReliabilityMetric(**settings)


def test_images_of_one_row():
    found = evaluate([image(0, (5, 30)), changed(**one_row())])
    assert found == pytest.approx(evaluate([image(0, (5, 30)), changed(**one_row(turned=True))]))


def one_row(turned=False):
    """Maps (., 1, 10) of known pixels, or the same pixels in a column."""
    sample = image(3, (5, 10))
    maps = {
        key: sample[key]['data'][:, 3:4] for key in ('seg_logits', 'pred_sem_seg', 'gt_sem_seg')
    }
    return {key: data.mT if turned else data for key, data in maps.items()}


def changed(**maps):
    sample = image(0)
    for key, data in maps.items():
        sample[key] = dict(data=data)
    return sample


def test_predictions_that_cannot_be_evaluated_are_refused():
    logits = image(0)['seg_logits']['data']
    bad = logits.clone()
    bad[1, 5, 5] = math.nan
    with pytest.raises(NonFiniteError, match=r'NaN or infinity for 0\.png'):
        evaluate([changed(seg_logits=bad)])
    with pytest.raises(ValueError, match=r'0\.png: `pred_sem_seg` is not what.*MeanTTAModel'):
        evaluate([changed(seg_logits=logits.flip(0))])
    with pytest.raises(ValueError, match='have 3 channels, but the dataset has 4 classes'):
        evaluate([changed(seg_logits=logits[:3])])
    with pytest.raises(ValueError, match='differ in size'):
        evaluate([changed(gt_sem_seg=torch.zeros(1, 9, 9))])
    with pytest.raises(ValueError, match='the truth has the value 9'):
        evaluate([changed(gt_sem_seg=torch.full((1, 20, 30), 9))])
    sample = image(0)
    del sample['seg_logits']
    with pytest.raises(KeyError, match='`seg_logits` is missing'):
        evaluate([sample])


def test_a_class_that_cannot_be_is_no_nan():
    logits = image(0)['seg_logits']['data'].clone()
    logits[3] = -math.inf
    pred = logits.argmax(0, keepdim=True)
    found = evaluate([changed(seg_logits=logits, pred_sem_seg=pred)])
    assert all(math.isfinite(value) for value in found.values())


# --- Predictors --------------------------------------------------------------------------------


@pytest.fixture
def mmseg_scope():
    with DefaultScope.overwrite_default_scope('mmseg'):
        yield


def build(cfg, scale=100, bias=0.0):
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(copy.deepcopy(cfg))).eval()
    for name, module in model.named_modules():
        if name.endswith('decode_head.conv_seg'):
            module.weight.data.mul_(scale)
            module.bias.data.fill_(bias)
    return model


def sample_of(classes=NUM_CLASSES, size=(24, 32)):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(256, (3, *size), generator=generator).to(torch.uint8)
    meta = dict(img_shape=size, pad_shape=size, ori_shape=size, img_path='x.png')
    sample = SegDataSample(metainfo=meta)
    label = torch.randint(0, classes, (1, *size), generator=generator)
    sample.gt_sem_seg = PixelData(data=label)
    return pixels, sample


def predicted(model, classes=NUM_CLASSES):
    pixels, sample = sample_of(classes)
    (result,) = model.test_step(dict(inputs=[pixels], data_samples=[sample]))
    return result.to_dict(), sample.gt_sem_seg.data.flatten()


def probabilities(model, classes=NUM_CLASSES):
    pixels, sample = sample_of(classes)
    (result,) = model.test_step(dict(inputs=[pixels], data_samples=[sample]))
    return result.seg_logits.data.softmax(0)


def expected_nll(prob, label):
    return float(F.nll_loss(prob.flatten(1).T.double().log(), label))


def test_an_ensemble_has_the_mean_of_the_probabilities(mmseg_scope):
    members = [tiny_segmentor(), tiny_segformer()]
    ensemble = build(dict(type='mmdmt.EnsembleSegmentor', members=members))
    result, label = predicted(ensemble)
    mean = sum(probabilities(member) for member in ensemble.members) / 2
    assert evaluate([result])['NLL'] == pytest.approx(expected_nll(mean, label), rel=1e-4)


def test_an_online_method_has_the_logits_of_its_network_or_of_their_mean(mmseg_scope):
    model = build(
        dict(type='mmdmt.MeanTeacher', segmentor=tiny_segmentor(), threshold=0.5, strong=None)
    )
    model.teacher.decode_head.conv_seg.bias.data += torch.tensor([3.0, 0, 0, -3])
    found = {}
    for name in ('student', 'teacher', ['student', 'teacher']):
        with model.predicting_on(name):
            result, label = predicted(model)
            found[str(name)] = probabilities(model)
            nll = expected_nll(found[str(name)], label)
            assert evaluate([result])['NLL'] == pytest.approx(nll, rel=1e-4)
    mean = (found['student'] + found['teacher']) / 2
    torch.testing.assert_close(found["['student', 'teacher']"], mean)


# So that probabilities lie on both sides of the threshold, and none is 0 or 1.
AROUND_THRESHOLD = dict(scale=30, bias=-0.85)


def one_channel():
    cfg = tiny_segmentor(2)
    cfg['decode_head'].update(out_channels=1, threshold=0.3)
    cfg['decode_head']['loss_decode'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    return cfg


def test_a_head_with_one_channel_gives_probabilities(mmseg_scope):
    result, label = predicted(build(one_channel(), **AROUND_THRESHOLD), 2)
    prob = result['seg_logits']['data']
    assert prob.shape[0] == 1 and prob.min() >= 0 and 0.3 < prob.max() <= 1
    both = torch.cat([1 - prob, prob])
    found = evaluate([result], classes=2)
    assert found['NLL'] == pytest.approx(expected_nll(both, label), rel=1e-4)
    # Above the threshold of 0.3 it is foreground, however improbable; that is its confidence.
    pred = result['pred_sem_seg']['data'].long()
    assert bool(((pred == 1) & (prob < 0.5)).any())
    confidence = both.gather(0, pred).flatten()
    accuracy = (pred.flatten() == label).double().mean()
    one_bin = evaluate([result], classes=2, num_bins=1)
    assert one_bin['ECE'] == pytest.approx(abs(float(confidence.mean() - accuracy)), abs=1e-5)
    saturated, _ = predicted(build(one_channel(), scale=1e4), 2)
    assert math.isfinite(evaluate([saturated], classes=2)['NLL'])
    # The same as two logits, but for the threshold.
    result['pred_sem_seg']['data'] = (prob > 0.5).long()
    two = dict(result, seg_logits=dict(data=both.log()))
    assert evaluate([result], classes=2) == pytest.approx(evaluate([two], classes=2), rel=1e-3)


def test_one_channel_must_hold_the_probabilities_of_the_prediction(mmseg_scope):
    result, _ = predicted(build(one_channel(), **AROUND_THRESHOLD), 2)
    logits = dict(result, seg_logits=dict(data=result['seg_logits']['data'] * 9 - 4))
    with pytest.raises(ValueError, match='of one channel must be probabilities'):
        evaluate([logits], classes=2)
    turned = dict(result, seg_logits=dict(data=1 - result['seg_logits']['data']))
    with pytest.raises(ValueError, match='is not what `seg_logits` predict'):
        evaluate([turned], classes=2)


def augmented(kind, segmentor, classes=NUM_CLASSES, **settings):
    """What a test-time augmentation with two orientations predicts, and the model in it."""
    model = build(dict(type=kind, module=segmentor), **settings)
    pixels, sample = sample_of(classes)
    flipped = copy.deepcopy(sample)
    flipped.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    views = [(pixels, sample), (pixels.flip(-1), flipped)]
    data = dict(inputs=[[view[0]] for view in views], data_samples=[[view[1]] for view in views])
    singles = [
        model.module.test_step(dict(inputs=[image], data_samples=[copy.deepcopy(each)]))[0]
        for image, each in views
    ]
    (result,) = model.test_step(data)
    return result.to_dict(), [each.seg_logits.data for each in singles]


def test_augmentation_of_mmseg_keeps_other_logits_than_it_predicts_from(mmseg_scope):
    result, views = augmented('SegTTAModel', tiny_segmentor())
    torch.testing.assert_close(result['seg_logits']['data'], views[1])
    with pytest.raises(ValueError, match=r"tta_model=dict\(type='mmdmt\.MeanTTAModel'"):
        evaluate([result])


def test_augmentation_gives_the_mean_of_the_views(mmseg_scope):
    result, views = augmented('mmdmt.MeanTTAModel', tiny_segmentor())
    mean = (views[0].softmax(0) + views[1].softmax(0)) / 2
    torch.testing.assert_close(result['seg_logits']['data'].softmax(0), mean)
    label = result['gt_sem_seg']['data'].flatten()
    assert evaluate([result])['NLL'] == pytest.approx(expected_nll(mean, label), rel=1e-4)
    stock, _ = augmented('SegTTAModel', tiny_segmentor())
    assert torch.equal(result['pred_sem_seg']['data'][0], stock['pred_sem_seg']['data'].squeeze())
    assert {'gt_sem_seg', 'img_path', 'ori_shape'} <= set(result)


def test_augmentation_of_one_channel_averages_probabilities(mmseg_scope):
    result, views = augmented('mmdmt.MeanTTAModel', one_channel(), 2, **AROUND_THRESHOLD)
    mean = (views[0] + views[1]) / 2
    torch.testing.assert_close(result['seg_logits']['data'], mean)
    assert torch.equal(result['pred_sem_seg']['data'], (mean > 0.3).float())
    assert 0 < result['pred_sem_seg']['data'].mean() < 1
    assert math.isfinite(evaluate([result], classes=2)['ECE'])
