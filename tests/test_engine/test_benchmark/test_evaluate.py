"""Checkpoints of work dirs are evaluated into records."""

import json

import pytest
from mmengine.config import Config
from tiny_project import base_config, labeled_only, load_config, make_tree, mean_teacher

from mmdmt.engine.benchmark import evaluate_checkpoint, read_records
from mmdmt.engine.runners import SemiRunner


@pytest.fixture(scope='module')
def teacher_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp('teacher')
    cfg = mean_teacher(base_config(make_tree(folder / 'data'), folder / 'run', max_iters=2))
    cfg['train_cfg']['val_interval'] = 2
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop')
    runner = SemiRunner.from_cfg(load_config(cfg, folder / 'config.py'))
    runner.train()
    scores = {
        name: runner.message_hub.get_scalar(f'val/{name}/mIoU').current()
        for name in ('student', 'teacher')
    }
    return folder / 'run', scores


def test_all_networks_are_recorded_the_default_first(teacher_run):
    work_dir, scores = teacher_run
    files = evaluate_checkpoint(
        work_dir / 'iter_2.pth', networks='all', facts=dict(selected_by='last')
    )
    assert [path.name for path in files.values()] == ['iter_2.teacher.json', 'iter_2.student.json']
    for name, path in files.items():
        record = json.loads(path.read_text())
        # The images of val and test are the same here.
        assert record['metrics']['mIoU'] == pytest.approx(scores[name], abs=0.006)
        assert record['network'] == name and record['default'] == (name == 'teacher')
        assert record['dataset'] == 'test' and record['selected_by'] == 'last'
        assert record['checkpoint'] == 'iter_2.pth' and record['step'] == 2
        assert len(record['images']) == 3
    assert [r['network'] for r in read_records(work_dir)] == ['student', 'teacher']


def test_validation_images_have_a_file_of_their_own(teacher_run, tmp_path):
    work_dir, _ = teacher_run
    files = evaluate_checkpoint(
        work_dir / 'iter_2.pth', networks=['student'], dataset='val', out_dir=tmp_path, stem='x'
    )
    assert files == {'student': tmp_path / 'x.student.val.json'}
    assert json.loads(files['student'].read_text())['dataset'] == 'val'


def test_a_single_network_is_called_model(tmp_path):
    cfg = labeled_only(base_config(make_tree(tmp_path / 'data'), tmp_path / 'run', max_iters=2))
    SemiRunner.from_cfg(load_config(cfg, tmp_path / 'config.py')).train()
    files = evaluate_checkpoint(tmp_path / 'run' / 'iter_2.pth')
    assert [path.name for path in files.values()] == ['iter_2.model.json']
    with pytest.raises(ValueError, match=r"single network, 'model'; there is no \['teacher'\]"):
        evaluate_checkpoint(tmp_path / 'run' / 'iter_2.pth', networks=['teacher'])


def test_what_is_missing_is_named(teacher_run, tmp_path):
    work_dir, _ = teacher_run
    with pytest.raises(ValueError, match=r'has 0 configs .* name the config'):
        evaluate_checkpoint(tmp_path / 'iter_2.pth')
    with pytest.raises(ValueError, match='`dataset` must be one of'):
        evaluate_checkpoint(work_dir / 'iter_2.pth', dataset='train')
    path = tmp_path / 'config.py'
    cfg = Config.fromfile(next(work_dir.glob('*.py')))
    cfg.test_dataloader = None
    cfg.dump(path)
    with pytest.raises(ValueError, match='no `test_dataloader`'):
        evaluate_checkpoint(work_dir / 'iter_2.pth', path)
