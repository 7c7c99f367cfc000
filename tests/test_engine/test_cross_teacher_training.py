"""Cross Teacher Training as users run it: evaluated, killed and resumed, in several processes."""

import pytest
import torch
from forked_tool import ForkedTool, forked_ranks
from mmengine.registry import RUNNERS
from tiny_project import base_config, load_config, make_tree, write_config

NETWORKS = ['student_l', 'student_r', 'teacher_l', 'teacher_r', 'average', 'teacher_average']
MAX_ITERS = 8

# Writes the state of every process between two checkpoints, at which all take rank 0's buffers.
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


def config(tree, work_dir, bank_sync='gather', workers=0):
    """Banks so small, and admission so easy, that the contrastive losses start at once."""
    cfg = base_config(tree, work_dir, MAX_ITERS, num_workers=workers)
    segmentor = cfg['model']
    # Predictions of all classes, right by chance, so that every bank gets something.
    override = dict(name='conv_seg')
    segmentor['decode_head']['init_cfg'] = dict(type='Normal', std=2.0, override=override)
    preprocessor = dict(
        segmentor.pop('data_preprocessor'),
        type='mmdmt.SemiDataPreprocessor',
        strong=dict(type='mmdmt.StrongAugment', preset='ctt'),
        num_strong=2,
    )
    contrast = dict(
        bank_size=3,
        bank_threshold=0.0,
        bank_sync=bank_sync,
        anchors_per_class=4,
        start=0.25,
        projection=dict(channels=4),
    )
    cfg['model'] = dict(
        type='mmdmt.CrossTeacher',
        segmentor=segmentor,
        data_preprocessor=preprocessor,
        semi_train_cfg=dict(threshold=0.3, mix=dict(type='mmdmt.ClassMix'), contrast=contrast),
        semi_test_cfg=dict(predict_on='teacher_average'),
    )
    cfg['custom_hooks'] = [dict(type='mmdmt.TeacherUpdateHook')]
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
    assert state['ema_steps'].tolist() == [MAX_ITERS] * 2
    assert (state['contrast.banks.l.counts'] == 3).any()
    for name, value in trained[1].model.state_dict().items():
        assert torch.equal(state[name], value), name


def test_a_killed_run_ends_with_the_same_weights_and_banks(trained, tree, tmp_path):
    cfg = write_config(config(tree, tmp_path, workers=2), tmp_path / 'cross.py')
    tool = ForkedTool('train.py', cfg, log=tmp_path / 'killed.log')
    tool.wait_for(tmp_path / 'iter_6.pth')
    tool.kill()
    assert not (tmp_path / f'iter_{MAX_ITERS}.pth').exists(), 'killed too late to test anything'
    # Banks of the first half teach the second.
    assert trained[1].message_hub.log_scalars['train/contrast_on']._log_history[6] == 1
    ForkedTool('train.py', cfg, '--resume', log=tmp_path / 'resumed.log').finish()
    expected = load(trained[0] / f'iter_{MAX_ITERS}.pth')
    found = load(tmp_path / f'iter_{MAX_ITERS}.pth')
    for key, value in expected['state_dict'].items():
        assert torch.equal(found['state_dict'][key], value), key


# ------------------------------------------------------------------------------- two processes


def write(tree, work_dir, bank_sync):
    work_dir.mkdir(exist_ok=True)
    cfg = config(tree, work_dir, bank_sync)
    cfg['custom_imports'] = dict(imports=['mmdmt', 'dump_hook'], allow_failed_imports=False)
    cfg['custom_hooks'].append(dict(type='DumpHook'))
    # Each network once is enough: evaluation is tested above.
    cfg['val_cfg'] = dict(type='ValLoop')
    return write_config(cfg, work_dir / 'cross.py')


def train(tree, path, *args):
    return forked_ranks('train.py', path, *args, log=path.with_suffix('.log'), PYTHONPATH=str(tree))


@pytest.fixture(scope='module', params=['gather', 'rank'])
def two_processes(request, tree, tmp_path_factory):
    """Finished runs: (work dir, how the banks are filled)."""
    work_dir = tmp_path_factory.mktemp(request.param)
    for tool in train(tree, write(tree, work_dir, request.param)):
        tool.finish()
    return work_dir, request.param


def test_banks_are_alike_in_structure_and_equal_if_gathered(two_processes):
    work_dir, bank_sync = two_processes
    first, second = (load(work_dir / f'rank_{rank}.pth') for rank in range(2))
    assert first.keys() == second.keys()
    assert all(second[key].shape == value.shape for key, value in first.items())
    for name in ('students.l.0.weight', 'teachers.r.2.weight'):
        assert torch.equal(first[f'contrast.{name}'], second[f'contrast.{name}'])
    for side in 'lr':
        feats = f'contrast.banks.{side}.feats'
        assert torch.equal(first[feats], second[feats]) is (bank_sync == 'gather')


def test_killed_processes_go_on_as_if_nothing_had_happened(two_processes, tree, tmp_path):
    whole, bank_sync = two_processes
    path = write(tree, tmp_path / 'killed', bank_sync)
    tools = train(tree, path)
    tools[0].wait_for(path.parent / 'iter_6.pth')
    for tool in tools:
        tool.kill()
    for tool in train(tree, path, '--resume'):
        tool.finish()
    expected = load(whole / f'iter_{MAX_ITERS}.pth')['state_dict']
    found = load(path.parent / f'iter_{MAX_ITERS}.pth')['state_dict']
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
