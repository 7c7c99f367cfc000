"""Cross Teacher Training as users run it: evaluated, resumed, in several processes."""

import shutil

import pytest
import torch
from forked_tool import forked_ranks
from mmengine.registry import RUNNERS
from tiny_project import base_config, load_config, make_tree, online, write_config

NETWORKS = ['student_l', 'student_r', 'teacher_l', 'teacher_r', 'average', 'teacher_average']
MAX_ITERS = 8

# Writes the state of every process between two checkpoints, at which buffers are shared.
DUMP = """
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmdmt.distributed import unwrap

@HOOKS.register_module()
class DumpHook(Hook):
    priority = 'LOWEST'
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == 6:
            state = unwrap(runner.model).state_dict()
            torch.save(state, f'{runner.work_dir}/rank_{runner.rank}.pth')
"""


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    root = make_tree(tmp_path_factory.mktemp('tree'))
    (root / 'dump_hook.py').write_text(DUMP)
    return root


def config(tree, work_dir, sync='gather', workers=0):
    """Banks so small, and admission so easy, that the contrastive losses start at once."""
    cfg = base_config(tree, work_dir, MAX_ITERS, num_workers=workers)
    # Predictions of all classes, right by chance, so that every bank gets something.
    override = dict(name='conv_seg')
    cfg['model']['decode_head']['init_cfg'] = dict(type='Normal', std=2.0, override=override)
    contrast = dict(
        bank=dict(size=3, threshold=0.0, sync=sync),
        anchors_per_class=4,
        start=0.25,
        projection=dict(channels=4),
    )
    cfg = online(
        cfg,
        'mmdmt.CrossTeacher',
        strong=dict(type='mmdmt.StrongAugment', preset='ctt'),
        mix=dict(type='mmdmt.ClassMix'),
        threshold=0.3,
        contrast=contrast,
        predict_on='teacher_average',
    )
    cfg['val_cfg'] = dict(type='mmdmt.NetworksValLoop', networks=NETWORKS)
    return cfg


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


@pytest.fixture(scope='module')
def trained(tree, tmp_path_factory):
    """A finished run: (work dir, runner)."""
    work_dir = tmp_path_factory.mktemp('run')
    torch.set_num_threads(1)
    runner = RUNNERS.build(load_config(config(tree, work_dir), work_dir / 'cross.py'))
    runner.train()
    return work_dir, runner


def test_both_modules_train(trained):
    scalars = trained[1].message_hub.log_scalars
    for side in 'lr':
        for level in ('high', 'low'):
            values = scalars[f'train/contrast_{side}_{level}_loss']._log_history
            assert values[0] == 0 < values[-1]
        assert scalars[f'train/unsup_{side}_loss'].current() > 0


def test_students_teachers_and_averages_are_evaluated(trained):
    scalars = trained[1].message_hub.log_scalars
    found = {name: scalars[f'val/{name}/mIoU'].current() for name in NETWORKS}
    assert all(0 <= value <= 100 for value in found.values())
    assert scalars['val/mIoU'].current() == found['teacher_average']


def test_checkpoint_holds_banks_teachers_and_steps(trained):
    state = load(trained[0] / f'iter_{MAX_ITERS}.pth')['state_dict']
    assert state['iterations'] == MAX_ITERS
    assert (state['contrast.banks.l.counts'] == 3).any()
    for name, value in trained[1].model.state_dict().items():
        assert torch.equal(state[name], value), name


def stopped_at_6(finished, work_dir):
    """A folder as a run leaves it that is killed after its checkpoint of iteration 6."""
    work_dir.mkdir(exist_ok=True)
    shutil.copy(finished / 'iter_6.pth', work_dir)
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'iter_6.pth'))
    return work_dir


def assert_same_end(work_dir, finished):
    logs = [log.read_text() for log in work_dir.rglob('*.log')]
    assert any('resumed epoch: 0, iter: 6' in text for text in logs), 'it started anew'
    expected, found = (
        load(folder / f'iter_{MAX_ITERS}.pth')['state_dict'] for folder in (finished, work_dir)
    )
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


def test_a_resumed_run_ends_with_the_same_weights_and_banks(trained, tree, tmp_path):
    # Banks of the first part teach the second.
    assert trained[1].message_hub.log_scalars['train/contrast_on']._log_history[6] == 1
    cfg = config(tree, stopped_at_6(trained[0], tmp_path), workers=2)
    cfg.update(val_cfg=dict(type='ValLoop'), resume=True)
    RUNNERS.build(load_config(cfg, tmp_path / 'cross.py')).train()
    assert_same_end(tmp_path, trained[0])


# ------------------------------------------------------------------------------- two processes


def write(tree, work_dir, sync):
    work_dir.mkdir(exist_ok=True)
    cfg = config(tree, work_dir, sync)
    cfg['custom_imports'] = dict(imports=['mmdmt', 'dump_hook'], allow_failed_imports=False)
    cfg['custom_hooks'] = [dict(type='DumpHook')]
    # Each network once is enough: evaluation is tested above.
    cfg['val_cfg'] = dict(type='ValLoop')
    return write_config(cfg, work_dir / 'cross.py')


def train(tree, path, *args):
    log = path.with_suffix('.log')
    for tool in forked_ranks('train.py', path, *args, log=log, PYTHONPATH=str(tree)):
        tool.finish()


@pytest.fixture(scope='module', params=['gather', 'rank'])
def two_processes(request, tree, tmp_path_factory):
    """Finished runs: (work dir, how the banks are filled)."""
    work_dir = tmp_path_factory.mktemp(request.param)
    train(tree, write(tree, work_dir, request.param))
    return work_dir, request.param


def test_banks_are_alike_in_structure_and_equal_if_gathered(two_processes):
    work_dir, sync = two_processes
    first, second = (load(work_dir / f'rank_{rank}.pth') for rank in range(2))
    assert first.keys() == second.keys()
    assert all(second[key].shape == value.shape for key, value in first.items())
    for name in ('students.l.0.weight', 'teachers.r.2.weight'):
        assert torch.equal(first[f'contrast.{name}'], second[f'contrast.{name}'])
    for side in 'lr':
        feats = f'contrast.banks.{side}.feats'
        assert torch.equal(first[feats], second[feats]) is (sync == 'gather')


def test_resumed_processes_end_with_the_same_weights_and_banks(two_processes, tree, tmp_path):
    finished, sync = two_processes
    work_dir = stopped_at_6(finished, tmp_path / 'resumed')
    train(tree, write(tree, work_dir, sync), '--resume')
    assert_same_end(work_dir, finished)
