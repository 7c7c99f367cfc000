"""What a user sees of a run: little on the terminal, all of it in the log file."""

import pytest
from forked_tool import ForkedTool
from tiny_project import base_config, make_tree, mean_teacher, mutual, write_config

from mmdmt.engine import screen
from mmdmt.engine.screen import Screen


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'))


def log_of(work_dir):
    return ''.join(path.read_text() for path in sorted(work_dir.rglob('*.log')))


def test_a_run_is_a_screen_of_facts_and_the_log_has_everything(tree, tmp_path):
    cfg = mean_teacher(base_config(tree, tmp_path / 'run', max_iters=4))
    cfg['train_cfg']['val_interval'] = 2
    config = write_config(cfg, tmp_path / 'c.py')
    printed = ForkedTool('train.py', config, log=tmp_path / 'out', quiet=True).finish()
    lines = printed.splitlines()
    assert len(lines) < 40, printed
    assert '\r' not in printed and 'OneDL' not in printed
    for fact in ('MeanTeacher (student, teacher)', '4 + 6, 2+2 in a step; 3 to validate', 'seed 0'):
        assert fact in printed
    assert [line.split(':')[0] for line in lines if line.startswith('validation')] == [
        'validation at 2 of 4',
        'validation at 4 of 4',
    ]
    assert 'best so far' in printed
    assert lines[-1].startswith('python ') and f'predict.py {tmp_path}/run IMAGES' in lines[-1]
    log = log_of(tmp_path / 'run')
    for detail in (
        'System environment',
        'Hooks will be executed',
        'Iter(train) [4/4]',
        'per class',
    ):
        assert detail in log and detail not in printed
    assert all(line.split(' - ')[-1] in log for line in lines if line.startswith('validation'))


def test_a_test_is_its_tables_and_scores(tree, tmp_path):
    cfg = mean_teacher(base_config(tree, tmp_path / 'run', max_iters=2))
    cfg['optim_wrapper']['paramwise_cfg'] = dict(bias_lr_mult=2.0)
    config = write_config(cfg, tmp_path / 'c.py')
    trained = ForkedTool('train.py', config, log=tmp_path / 'train').finish()
    assert 'is skipped' not in trained  # of each parameter of the teacher
    args = (config, tmp_path / 'run/final.pth', '--work-dir', tmp_path / 'test')
    printed = ForkedTool('test.py', *args, log=tmp_path / 'out', quiet=True).finish()
    lines = printed.splitlines()
    assert len(lines) < 20, printed
    assert any(line.endswith('final.pth: 3 images') for line in lines) and 'OneDL' not in printed
    assert any(line.startswith('|') and 'IoU' in line for line in lines)
    assert lines[-2].startswith('aAcc: ') and 'mIoU: ' in lines[-2]
    assert lines[-1].startswith(f'log: {tmp_path}/test/')
    log = log_of(tmp_path / 'test')
    assert 'System environment' in log and 'System environment' not in printed
    everything = ForkedTool('test.py', *args, log=tmp_path / 'all').finish()
    assert 'System environment' in everything


def test_a_chain_says_which_of_its_stages_is_on(tree, tmp_path):
    cfg = mutual(base_config(tree, tmp_path / 'run', max_iters=2), ratios=[1.0])
    cfg['mutual']['round']['max_iters'] = 2
    config = write_config(cfg, tmp_path / 'c.py')
    printed = ForkedTool('train.py', config, log=tmp_path / 'out', quiet=True).finish()
    assert len(printed.splitlines()) < 60, printed
    for index in range(1, 5):
        assert f'stage {index} of 4: validation at 2 of 2' in printed
    assert printed.count('All stages:') == 1


def test_what_runs_after_a_chain_is_no_stage_of_it():
    with pytest.raises(KeyboardInterrupt), Screen.chain([4, 4, 2]):
        Screen.index, Screen.introduced = 2, True
        assert screen._stage() == 'stage 3 of 3: '
        raise KeyboardInterrupt
    assert screen._stage() == '' and not Screen.introduced


def test_missing_weights_are_one_clear_error(tree, tmp_path):
    cfg = mean_teacher(base_config(tree, tmp_path / 'run', max_iters=2))
    absent = dict(type='Pretrained', checkpoint=str(tmp_path / 'absent.pth'))
    cfg['model']['segmentor']['backbone']['init_cfg'] = absent
    config = write_config(cfg, tmp_path / 'c.py')
    tool = ForkedTool('train.py', config, log=tmp_path / 'out', quiet=True)
    printed = tool.finish(check=False)
    assert tool.process.exitcode == 1
    assert 'Traceback' not in printed
    message = printed.strip().splitlines()[-1]
    for part in (
        'absent.pth',
        '--cfg-options model.segmentor.backbone.init_cfg.checkpoint=FILE',
        'model.segmentor.backbone.init_cfg=None',
    ):
        assert part in message


class Terminal:
    """A stream that says whether it is a terminal, and keeps what is written."""

    def __init__(self, is_terminal):
        self.is_terminal, self.text = is_terminal, ''

    def isatty(self):
        return self.is_terminal

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize('is_terminal', [True, False])
def test_progress_is_one_line_on_a_terminal_and_plain_lines_elsewhere(monkeypatch, is_terminal):
    stream = Terminal(is_terminal)
    monkeypatch.setattr('sys.stdout', stream)
    Screen.progress('step 1')
    Screen.progress('step 2')
    Screen.clear()
    assert ('\r' in stream.text) is is_terminal
    assert ('\n' in stream.text) is not is_terminal
    assert stream.text.endswith('\x1b[K' if is_terminal else 'step 2\n')


def test_the_time_that_is_left_counts_the_stages_that_follow(monkeypatch):
    class Runner:
        max_iters = 100

        class message_hub:
            log_scalars: dict = {}

    monkeypatch.setattr(Screen, 'lengths', [100, 100, 50])
    monkeypatch.setattr(Screen, 'index', 1)
    line = screen._progress(Runner, 40, 2.0)
    assert line.startswith('stage 2 of 3: step 40 of 100')
    assert '0:02:00 left' in line and '0:03:40 for all stages' in line
