import functools
import http.server
import os
import re
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader

from mmdmt import checkpoint as module
from mmdmt.checkpoint import (
    UntrustedCheckpointError,
    find_latest_valid_checkpoint,
    is_complete,
    load_checkpoint_file,
    read_stored_config,
    safe_loading,
    save_atomically,
)
from mmdmt.files import write_text_atomically


class Payload:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ('hacked',)


def make_checkpoint(**extra):
    parameter = torch.nn.Parameter(torch.rand(3))
    return dict(
        state_dict={
            'weight': torch.rand(2, 3),
            'half': torch.rand(2).to(torch.bfloat16),
            'steps': torch.zeros(2, dtype=torch.long),
            'view': torch.rand(4, 4)[1:, ::2],
        },
        optimizer=torch.optim.AdamW([parameter]).state_dict(),
        parameter=parameter,
        message_hub=dict(
            log_scalars={'train/loss': HistoryBuffer([1.0, 2.0], [1, 1])},
            runtime_info={'mIoU': np.float32(0.5), 'iter': np.int64(3), 'x': np.float64(1)},
        ),
        meta=dict(iter=3, shape=torch.Size([1, 2]), dtype=torch.float32, palette=np.eye(2)),
        **extra,
    )


# Torch before 2.4 has no list: only plain checkpoints load there.
listed = pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'), reason='torch before 2.4'
)


@listed
def test_what_a_runner_saves_is_loaded(tmp_path):
    saved = make_checkpoint()
    save_atomically(saved, tmp_path / 'a.pth')
    loaded = load_checkpoint_file(tmp_path / 'a.pth')
    for key, value in saved['state_dict'].items():
        assert torch.equal(loaded['state_dict'][key], value)
    assert loaded['message_hub']['runtime_info'] == saved['message_hub']['runtime_info']
    assert loaded['message_hub']['log_scalars']['train/loss'].current() == 2
    assert loaded['meta']['dtype'] is torch.float32
    assert np.array_equal(loaded['meta']['palette'], np.eye(2))


@listed
@pytest.mark.parametrize('core', ['numpy.core', 'numpy._core'])
def test_files_of_both_numpy_versions_are_loaded(tmp_path, core):
    saved = make_checkpoint()
    torch.save(saved, tmp_path / 'own.pth')
    own = zipfile.ZipFile(tmp_path / 'own.pth')
    with zipfile.ZipFile(tmp_path / 'a.pth', 'w') as other:
        for name in own.namelist():
            content = re.sub(rb'cnumpy\.\w*core', f'c{core}'.encode(), own.read(name))
            other.writestr(name, content)
    loaded = load_checkpoint_file(tmp_path / 'a.pth')
    assert loaded['message_hub']['runtime_info'] == saved['message_hub']['runtime_info']
    assert np.array_equal(loaded['meta']['palette'], np.eye(2))


def test_without_an_allow_list_only_plain_checkpoints_are_loaded(tmp_path, monkeypatch):
    """As with torch < 2.4."""
    if hasattr(torch.serialization, 'add_safe_globals'):
        monkeypatch.delattr(torch.serialization, 'add_safe_globals')
        torch.serialization.clear_safe_globals()
    save_atomically(dict(state_dict=dict(a=torch.ones(1)), meta=dict(iter=1)), tmp_path / 'a.pth')
    assert load_checkpoint_file(tmp_path / 'a.pth')['meta'] == dict(iter=1)
    save_atomically(make_checkpoint(), tmp_path / 'b.pth')
    with pytest.raises(UntrustedCheckpointError, match=r'HistoryBuffer.*--trust-checkpoint'):
        load_checkpoint_file(tmp_path / 'b.pth')


class Lookup:
    """Reaches for an attribute when it is unpickled."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


@listed
@pytest.mark.parametrize('value, name', [(Payload(), r'\w+\.mkdir'), (Lookup(), 'getattr')])
def test_objects_beyond_the_list_are_refused_by_name(tmp_path, monkeypatch, value, name):
    monkeypatch.chdir(tmp_path)
    save_atomically(make_checkpoint(extra=value), 'a.pth')
    with pytest.raises(UntrustedCheckpointError, match=name) as error:
        load_checkpoint_file('a.pth')
    assert '--trust-checkpoint a.pth' in str(error.value)
    assert not os.path.exists('hacked')


def test_a_trusted_checkpoint_is_loaded_and_no_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_atomically(dict(extra=Payload()), 'a.pth')
    with pytest.raises(UntrustedCheckpointError):
        load_checkpoint_file('a.pth', trusted=['b.pth', str(tmp_path)])
    load_checkpoint_file('a.pth', trusted=[tmp_path / 'a.pth'])
    assert os.path.exists('hacked')


@listed
def test_mmap_reads_the_same(tmp_path):
    saved = make_checkpoint()
    save_atomically(saved, tmp_path / 'a.pth')
    loaded = load_checkpoint_file(tmp_path / 'a.pth', mmap=True)
    assert torch.equal(loaded['state_dict']['weight'], saved['state_dict']['weight'])


@pytest.mark.parametrize('content', [b'', b'junk', b'PK\x03\x04 cut off'])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / 'iter_3.pth'
    path.write_bytes(content)
    with pytest.raises((RuntimeError, UntrustedCheckpointError), match=r'iter_3\.pth'):
        load_checkpoint_file(path)
    with pytest.raises(FileNotFoundError, match='absent'):
        load_checkpoint_file(tmp_path / 'absent.pth')


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'a.pth'
    save_atomically(dict(a=1), path)

    def fail(obj, file):
        file.write_bytes(b'half')
        raise OSError('disk full')

    monkeypatch.setattr(torch, 'save', fail)
    with pytest.raises(OSError, match='disk full'):
        save_atomically(dict(a=2), path)
    assert load_checkpoint_file(path) == dict(a=1)
    assert list(tmp_path.iterdir()) == [path]


def test_is_complete_sees_cuts_and_flipped_bytes(tmp_path):
    path = tmp_path / 'a.pth'
    save_atomically(dict(weight=torch.rand(1000)), path)
    content = path.read_bytes()
    assert is_complete(path)
    for length in (0, 10, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert not is_complete(path)
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    assert not is_complete(path)
    assert not is_complete(tmp_path / 'absent.pth')


@pytest.fixture
def run(tmp_path):
    """A work dir with checkpoints 2, 4 and 10, where 10 is the last; others hold weights alone."""
    for step in (2, 4, 10):
        save_atomically(dict(step=step), tmp_path / f'iter_{step}.pth')
    for name in ('best_mIoU_iter_4', 'best_mIoU_iter_99', 'final'):
        save_atomically(dict(step=0), tmp_path / f'{name}.pth')
    write_text_atomically(tmp_path / 'last_checkpoint', str(tmp_path / 'iter_10.pth'))
    return tmp_path


def latest(folder):
    path = find_latest_valid_checkpoint(folder)
    return path and os.path.relpath(path, folder)


def test_the_named_checkpoint_is_the_latest(run):
    assert latest(run) == 'iter_10.pth'
    # Not the highest number: it may be left over from an earlier, longer run.
    save_atomically(dict(step=99), run / 'iter_99.pth')
    assert latest(run) == 'iter_10.pth'


def test_damaged_checkpoints_are_passed_over(run, monkeypatch):
    messages = []
    monkeypatch.setattr(module, '_warn', messages.append)
    (run / 'iter_10.pth').write_bytes((run / 'iter_10.pth').read_bytes()[:-20])
    save_atomically(dict(step=99), run / 'iter_99.pth')
    assert latest(run) == 'iter_4.pth'
    assert 'iter_10.pth is missing or damaged' in messages[-1]
    (run / 'iter_4.pth').write_bytes(b'')
    assert latest(run) == 'iter_2.pth'
    (run / 'iter_2.pth').unlink()
    assert latest(run) is None
    assert 'no older checkpoint is complete' in messages[-1]


@pytest.mark.parametrize('text', ['', '/some/where/iter_1', '\0\0\0'])
def test_a_damaged_pointer_means_the_newest_complete_one(run, text):
    (run / 'last_checkpoint').write_text(text)
    assert latest(run) == 'iter_10.pth'
    (run / 'iter_10.pth').write_bytes(b'')
    assert latest(run) == 'iter_4.pth'


def test_a_moved_work_dir_is_understood(run):
    (run / 'last_checkpoint').write_text('/elsewhere/iter_4.pth')
    assert latest(run) == 'iter_4.pth'


def test_a_copied_work_dir_goes_on_from_its_own_checkpoint(run, tmp_path):
    """The path in the copy leads to the original, whose training goes on differently."""
    (run / 'last_checkpoint').write_text(str(run / 'iter_4.pth'))
    copy = tmp_path / 'copy'
    shutil.copytree(run, copy)
    assert find_latest_valid_checkpoint(copy) == str(copy / 'iter_4.pth')


def test_no_checkpoint_is_none(tmp_path):
    assert latest(tmp_path) is None


def test_pretrained_weights_are_loaded_safely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_atomically(dict(extra=Payload()), 'bad.pth')
    save_atomically(dict(state_dict=dict(a=torch.ones(1))), 'good.pth')
    with safe_loading():
        assert CheckpointLoader.load_checkpoint('good.pth')['state_dict']['a'] == 1
        with pytest.raises(UntrustedCheckpointError):
            CheckpointLoader.load_checkpoint('bad.pth')
        assert not os.path.exists('hacked')
    with safe_loading(trusted=['bad.pth']):
        CheckpointLoader.load_checkpoint('bad.pth')
    assert os.path.exists('hacked')


@listed
def test_downloads_are_loaded_safely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    save_atomically(dict(extra=Payload()), 'bad.pth')
    save_atomically(make_checkpoint(), 'good.pth')
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        with safe_loading():
            assert CheckpointLoader.load_checkpoint(f'{address}/good.pth')['meta']['iter'] == 3
            # The maintained mmengine takes its own allow-list back.
            assert load_checkpoint_file('good.pth')['meta']['iter'] == 3
        with pytest.raises(UntrustedCheckpointError, match='mkdir'), safe_loading():
            CheckpointLoader.load_checkpoint(f'{address}/bad.pth')
        server.shutdown()
    assert not os.path.exists('hacked')


def test_safe_loading_restores_what_it_changed(monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    stock = CheckpointLoader._schemes['']
    with pytest.raises(KeyError), safe_loading():
        assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '1'
        assert CheckpointLoader._schemes[''] is not stock
        raise KeyError
    assert os.environ['TORCH_FORCE_WEIGHTS_ONLY_LOAD'] == '0'
    assert CheckpointLoader._schemes[''] is stock


@pytest.mark.usefixtures('formatted_configs')
def test_a_stored_config_is_read_as_mmengine_writes_it():
    cfg = Config(
        dict(
            a=1,
            negative=-0.5,
            bounds=(float('-inf'), float('inf')),
            none=None,
            quoted="it's",
            model=dict(type='X', scale=(2, 3), empty=[], flags=[True, False]),
            mixed={'backbone.norm': dict(lr_mult=0.1), 'head': {'decay.x': dict(v=(1,))}},
            nested=[dict(a=[(1, 2), [3]]), dict(b={'1x': 2})],
        )
    )
    assert read_stored_config(cfg.pretty_text).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('content', [[1, 2], dict(state_dict=None)])
def test_files_without_weights_by_name_are_refused(content, tmp_path):
    torch.save(content, tmp_path / 'odd.pth')
    with pytest.raises(RuntimeError, match=r'odd.pth holds a (list|NoneType) where weights'):
        load_checkpoint_file(tmp_path / 'odd.pth')
    with pytest.raises(FileNotFoundError, match='is a folder'):
        load_checkpoint_file(tmp_path)


@pytest.mark.parametrize(
    'text',
    [
        '__import__("os").system("touch hacked")',
        'a = __import__("os").system("touch hacked")',
        'a = dict(b=open("x"))',
        'a = dict(**b)',
        'import os',
        'a = b = 1',
        'a = (',
        'filename = 1',
        'a = ' + '-' * 100_000 + '1',
        5,
    ],
)
def test_a_stored_config_that_does_more_is_refused(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match='Name the config file'):
        read_stored_config(text)
    assert not list(tmp_path.iterdir())
