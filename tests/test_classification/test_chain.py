"""The chain of mutual training of a classifier, in this process."""

import copy
import json
import shutil

import mmcv
import pytest
import torch
from mmengine.config import Config
from tiny_classification import (
    RUNTIME,
    classification_config,
    make_folders,
    mutual_classification,
    tiny_classifier,
)
from tiny_project import load_config

import mmdmt.classification  # noqa: F401
from mmdmt.classification.soft_labels import SoftLabelStore
from mmdmt.engine.mutual import LedgerMismatchError, build_stage_config_builder
from mmdmt.engine.mutual.ledger import VERSION
from mmdmt.engine.runners import MutualTrainingRunner
from mmdmt.registry import DATASETS, MODELS, RUNNERS

pytestmark = pytest.mark.usefixtures('unformatted_configs')
STAGES = ['stage_0_a', 'stage_1_a', 'stage_2_a']


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp('folders'))


def chain(tree, work_dir, **settings):
    cfg = mutual_classification(classification_config(tree, work_dir), **settings)
    return load_config(cfg, work_dir / 'chain.py', RUNTIME)


@pytest.fixture(scope='module')
def finished(unformatted_configs, tree, tmp_path_factory):
    """An uninterrupted chain: (work dir, ledger entries)."""
    work_dir = tmp_path_factory.mktemp('chain')
    torch.set_num_threads(1)
    return work_dir, RUNNERS.build(chain(tree, work_dir)).train()


def content(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def assert_same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


def test_every_stage_is_run_and_in_the_table(finished, tree):
    work_dir, entries = finished
    assert [name for name in STAGES if entries[name]['state'] == 'done'] == STAGES
    assert 0 <= entries['stage_2_a']['metrics']['accuracy/top1'] <= 100
    table = MutualTrainingRunner.from_cfg(chain(tree, work_dir)).describe()
    assert 'accuracy/top1' in table and 'stage_2_a/iter_4.pth' in table


def test_what_was_labeled_is_logged_class_by_class(finished):
    stage = finished[0] / 'stage_1_a'
    text = '\n'.join(path.read_text() for path in stage.rglob('*.log'))
    assert 'Soft labels: 24 images by iter_4.pth' in text and '| share % | kept % |' in text
    scalars = '\n'.join(path.read_text() for path in stage.rglob('scalars.json'))
    assert '"pseudo_labels/kept_share"' in scalars


def test_rounds_have_lengths_of_their_own(finished):
    entries = finished[1]
    products = [entries[name]['checkpoint'] for name in STAGES]
    assert [name.rsplit('/', 1)[1] for name in products] == [
        'iter_4.pth',
        'iter_2.pth',
        'iter_4.pth',
    ]


def test_labels_come_from_the_average_of_the_round_before(finished):
    work_dir, entries = finished
    for stage, teacher, selected in (
        ('stage_1_a', 'stage_0_a', 10),
        ('stage_2_a', 'stage_1_a', 24),  # at a ratio of 1 all
    ):
        stored = SoftLabelStore(work_dir / stage / 'soft_labels.npz').read()
        assert stored.manifest['checkpoint']['bytes'] == entries[teacher]['checkpoint_bytes']
        assert len(stored.names) == 24 and stored.selected.sum() == selected
    network = MODELS.build(tiny_classifier())
    checkpoint = content(work_dir / entries['stage_1_a']['checkpoint'])
    last = {k[7:]: v for k, v in checkpoint['ema_state_dict'].items() if k.startswith('module.')}
    network.load_state_dict(checkpoint['state_dict'])  # an ordinary ImageClassifier
    assert any(not torch.equal(v, last[k]) for k, v in checkpoint['state_dict'].items())


def test_each_round_starts_from_a_fresh_network(finished, tree):
    builder = build_stage_config_builder(chain(tree, finished[0]))
    seeds = set()
    for stage in builder.plan.stages:
        cfg = builder.build(
            stage, '/work_dir/stage', load_from='old.pth', teacher_checkpoint='old.pth'
        )
        assert cfg.load_from is None
        seeds.add(cfg.randomness.seed)
    assert len(seeds) == 3


def test_only_the_selected_images_are_trained_on(finished, tree):
    work_dir, _ = finished
    cfg = Config.fromfile(str(work_dir / 'stage_1_a' / 'config.py'))
    source = cfg.train_dataloader.dataset.datasets[1]
    dataset = DATASETS.build(dict(source, pipeline=[]))
    assert len(dataset) == 10
    stored = SoftLabelStore(work_dir / 'stage_1_a' / 'soft_labels.npz').read()
    info = dataset.get_data_info(0)
    row = stored.names.index(info['name'])
    assert stored.selected[row] and (info['soft_label'] == stored.probabilities[row]).all()
    assert info['gt_label'] == stored.probabilities[row].argmax()


def test_a_finished_chain_is_not_run_again_and_can_be_moved(finished, tree, tmp_path):
    work_dir, entries = finished
    assert MutualTrainingRunner.from_cfg(chain(tree, work_dir)).train() == entries
    (tmp_path / 'copy').mkdir()
    (tmp_path / 'copy' / 'stages.json').write_text((work_dir / 'stages.json').read_text())
    for name in STAGES:
        (tmp_path / 'copy' / name).symlink_to(work_dir / name)
    assert MutualTrainingRunner.from_cfg(chain(tree, tmp_path / 'copy')).train() == entries


def test_each_class_has_its_share_of_what_is_selected(unformatted_configs, tree, tmp_path):
    labeling = dict(selection='class', num_workers=0)
    settings = dict(ratios=[0.5], round=dict(max_iters=2), labeling=labeling)
    RUNNERS.build(chain(tree, tmp_path, **settings)).train()
    stored = SoftLabelStore(tmp_path / 'stage_1_a' / 'soft_labels.npz').read()
    label = stored.probabilities.argmax(1)
    found = {each: stored.selected[label == each].sum() for each in set(label)}
    assert found == {each: max(1, round(0.5 * (label == each).sum())) for each in set(label)}


@pytest.mark.parametrize(
    'change, key',
    [
        ({'model.mixup_alpha': 0.1}, r'model\.mixup_alpha: None -> 0\.1'),
        ({'default_hooks.ema.momentum': 0.5}, r'ema\.momentum: 0\.9 -> 0\.5'),
    ],
)
def test_a_changed_config_is_refused(finished, tree, change, key):
    cfg = chain(tree, finished[0])
    cfg.merge_from_dict({'custom_hooks': [dict(type='EmptyCacheHook')], **change})
    with pytest.raises(LedgerMismatchError, match=key):
        MutualTrainingRunner.from_cfg(cfg).train()


def test_damaged_soft_labels_are_made_again(finished, tree, tmp_path):
    """By a stage that was begun: it was killed, and something happened to the file."""
    work_dir, entries = finished
    shutil.copytree(work_dir, tmp_path, dirs_exist_ok=True)
    stages = copy.deepcopy(entries)
    stages['stage_2_a']['state'] = 'running'
    (tmp_path / 'stages.json').write_text(json.dumps(dict(version=VERSION, stages=stages)))
    for left in (*(tmp_path / 'stage_2_a').glob('iter_*.pth'), 'stage_2_a/last_checkpoint'):
        (tmp_path / left).unlink()
    file = tmp_path / 'stage_2_a' / 'soft_labels.npz'
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    again = RUNNERS.build(chain(tree, tmp_path)).train()
    one, two = (SoftLabelStore(path / 'stage_2_a' / file.name) for path in (tmp_path, work_dir))
    assert (one.read().probabilities == two.read().probabilities).all()
    name = entries['stage_2_a']['checkpoint']
    assert_same(content(tmp_path / name)['state_dict'], content(work_dir / name)['state_dict'])
    assert again['stage_2_a']['metrics'] == entries['stage_2_a']['metrics']


def test_metrics_of_each_class_may_be_asked_for(tree, tmp_path):
    cfg = mutual_classification(classification_config(tree, tmp_path), ratios=[], round={})
    by_class = dict(type='SingleLabelMetric', items=('recall',), average=None)
    cfg['val_evaluator'] = [dict(type='Accuracy', topk=(1,)), by_class]
    entries = RUNNERS.build(load_config(cfg, tmp_path / 'chain.py', RUNTIME)).train()
    assert set(entries['stage_0_a']['metrics']) == {'accuracy/top1'}
    assert 'recall_classwise: [' in next((tmp_path / 'stage_0_a').rglob('*.log')).read_text()


def test_a_chain_learns_from_unlabeled_images(tmp_path):
    """Six labels among noisy images: the round classifies unseen ones no worse than round 0."""
    tree = make_folders(tmp_path / 'data', per_class=30, noise=80)
    cfg = classification_config(tree, tmp_path, max_iters=60, interval=60)
    cfg['val_dataloader'] = cfg['test_dataloader']
    loader = cfg['train_dataloader']
    loader['batch_size'] = loader['sampler']['batch_size'] = 12
    for source in loader['dataset']['datasets']:  # inverted, a color is that of another class
        source['pipeline'] = [
            step for step in source['pipeline'] if step['type'] != 'mmdmt.RandAugment'
        ]
    cfg['optim_wrapper']['optimizer']['lr'] = 0.1
    round_1 = dict(max_iters=60, source_ratio=[1, 2])
    cfg = mutual_classification(cfg, round=round_1, ratios=[0.7])
    entries = RUNNERS.build(load_config(cfg, tmp_path / 'chain.py', RUNTIME)).train()
    before, after = (entry['metrics']['accuracy/top1'] for entry in entries.values())
    assert after >= before and after > 80, (before, after)  # by chance 33


def test_one_stage_alone(finished, tree, tmp_path):
    work_dir, entries = finished
    cfg = chain(tree, tmp_path)
    cfg.stage = 'round_0.a'
    assert set(RUNNERS.build(cfg).train()) == {'stage_0_a'}
    name = entries['stage_0_a']['checkpoint']
    assert_same(content(tmp_path / name)['state_dict'], content(work_dir / name)['state_dict'])
    cfg = chain(tree, tmp_path)
    cfg.stage = 'round_2.a'
    with pytest.raises(RuntimeError, match='stage_1_a is pending'):
        RUNNERS.build(cfg).train()


def test_the_stage_config_tests_the_stage(finished):
    stage = finished[0] / 'stage_2_a'
    cfg = Config.fromfile(str(stage / 'config.py'))
    cfg.update(load_from=str(stage / 'iter_4.pth'), resume=False)
    assert 0 <= RUNNERS.build(cfg).test()['accuracy/top1'] <= 100


@pytest.mark.parametrize(
    'settings, message',
    [
        (dict(round=dict(max_iters=[1, 2, 3])), '3 numbers for 2 ratios'),
        (dict(labeling=dict(pixel_stride=4)), "unknown keys .'pixel_stride'."),
        (dict(ensemble=True), 'ensemble'),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(tree, tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        build_stage_config_builder(chain(tree, tmp_path, **settings))


def test_an_unknown_task_is_refused(tree, tmp_path):
    cfg = chain(tree, tmp_path)
    cfg.mutual.task = 'detection'
    with pytest.raises(
        ValueError, match=r"one of \['classification', 'segmentation'\], got 'detection'"
    ):
        build_stage_config_builder(cfg)


def test_the_model_must_be_a_mutual_classifier(tree, tmp_path):
    cfg = chain(tree, tmp_path)
    cfg.model.type = 'ImageClassifier'
    with pytest.raises(ValueError, match=r'model\.type. must be one of .*mmdmt\.MutualClassifier'):
        build_stage_config_builder(cfg)


def test_soft_labels_are_the_predictions_of_the_network(finished, tree):
    """By hand: the stored probabilities of one image, and which were selected."""
    work_dir, entries = finished
    stored = SoftLabelStore(work_dir / 'stage_1_a' / 'soft_labels.npz').read()
    network = MODELS.build(tiny_classifier()).eval()
    network.load_state_dict(content(work_dir / entries['stage_0_a']['checkpoint'])['state_dict'])
    image = torch.from_numpy(mmcv.imread(str(tree / 'train' / stored.names[5]))).permute(2, 0, 1)
    data = network.data_preprocessor(dict(inputs=image[None]))
    expected = network(data['inputs']).softmax(1)[0]
    torch.testing.assert_close(
        torch.from_numpy(stored.probabilities[5]), expected, rtol=1e-3, atol=1e-3
    )
    confidence = stored.probabilities.max(1)
    assert confidence[stored.selected].min() > confidence[~stored.selected].max()


def test_the_ledger_holds_no_paths_of_the_machine(finished, tree):
    work_dir, entries = finished
    assert str(work_dir) not in json.dumps(entries['stage_1_a']['config'])
