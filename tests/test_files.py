import os
import platform
import resource
import signal
import subprocess
import time

import pytest
import torch

from mmdmt import files
from mmdmt.checkpoint import save_atomically
from mmdmt.files import (
    BusyError,
    atomic_path,
    hold,
    remove_stale_temporaries,
    require_writable,
    write_text_atomically,
)


def test_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / 'sub' / 'file.txt'
    with atomic_path(path) as temporary:
        temporary.write_text('new')
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == 'new'
    assert list(path.parent.iterdir()) == [path]


def test_a_file_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    events, replace = [], os.replace
    monkeypatch.setattr(os, 'fsync', lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, 'replace', lambda *paths: events.append('named') or replace(*paths))
    write_text_atomically(tmp_path / 'file.txt', 'new')
    assert events == [(tmp_path / 'file.txt').stat().st_ino, 'named', tmp_path.stat().st_ino]


def test_an_error_leaves_the_old_file_and_no_rest(tmp_path):
    path = tmp_path / 'file.txt'
    write_text_atomically(path, 'old')
    with pytest.raises(KeyError), atomic_path(path) as temporary:
        temporary.write_text('ne')
        raise KeyError
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_writers_on_two_machines_have_two_temporaries(tmp_path, monkeypatch):
    path = tmp_path / 'stages.json'
    monkeypatch.setattr(os, 'getpid', lambda: 7)
    temporaries = []
    for host in ('node-1', 'node-2', 'node/ä' + 300 * 'x', ''):
        monkeypatch.setattr(platform, 'node', lambda host=host: host)
        with atomic_path(path) as temporary:
            temporary.write_text(host)
            temporaries.append(temporary)
    assert len(set(temporaries)) == 4
    assert temporaries[0].name == '.stages.json.partial-node-1-7'
    assert list(tmp_path.iterdir()) == [path]


def test_a_temporary_that_was_left_is_a_stale_one(tmp_path):
    with atomic_path(tmp_path / 'x.pth') as temporary:
        temporary.write_text('half')
        assert remove_stale_temporaries(tmp_path) == [temporary]
        temporary.write_text('whole')


def test_stale_temporaries_are_removed(tmp_path):
    kept = tmp_path / 'iter_2.pth'
    write_text_atomically(kept, 'kept')
    stale = tmp_path / '.iter_3.pth.partial-1234'
    stale.write_text('half')
    assert remove_stale_temporaries(tmp_path) == [stale]
    assert list(tmp_path.iterdir()) == [kept]


def test_a_writer_removes_what_killed_writers_of_its_file_left(tmp_path):
    path, other = tmp_path / 'stages[1].json', tmp_path / '.meta.json.partial-elsewhere-7'
    ended = subprocess.Popen(['true'])
    ended.wait()
    here = platform.node()
    names = [f'{here}-{ended.pid}', f'{here}-{os.getppid()}', 'elsewhere-7', 'longago-7']
    dead, living, elsewhere, old = [tmp_path / f'.{path.name}.partial-{name}' for name in names]
    for left in (dead, living, elsewhere, old, other):
        left.write_text('half')
    long_ago = time.time() - 7 * 24 * 3600
    os.utime(old, (long_ago, long_ago))
    write_text_atomically(path, 'whole')
    assert sorted(tmp_path.iterdir()) == sorted([path, living, elsewhere, other])


@pytest.fixture
def read_only(tmp_path):
    """A folder that this process cannot write to, also where tests are run by root."""
    folder, user = tmp_path / 'data', os.geteuid()
    folder.mkdir(mode=0o555)
    if user == 0:
        tmp_path.chmod(0o755)
        os.seteuid(65534)
    yield folder
    os.seteuid(user)


def test_a_read_only_folder_is_named_with_what_to_do(read_only):
    with pytest.raises(OSError, match=rf'cannot write into {read_only} \(.*name another folder'):
        write_text_atomically(read_only / 'train.txt', 'a\n')
    new = read_only / 'run'
    with pytest.raises(OSError, match=rf'cannot write into {new} \(.*folder \(--work-dir\)'):
        require_writable(new, '--work-dir')


@pytest.fixture
def full_disk():
    """Files cannot grow beyond some bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_named_and_leaves_the_old_file(tmp_path, full_disk):
    write_text_atomically(tmp_path / 'log', 'old')
    save_atomically(dict(old=1), tmp_path / 'iter_1.pth')
    with pytest.raises(OSError, match=rf'cannot write into {tmp_path} \(.*free space'):
        write_text_atomically(tmp_path / 'log', 20_000 * 'x')
    # What torch says is "unexpected pos 704 vs 598".
    with pytest.raises(OSError, match=rf'cannot write into {tmp_path} \(.*is the disk full'):
        save_atomically(dict(new=torch.zeros(10_000)), tmp_path / 'iter_1.pth')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['iter_1.pth', 'log']
    assert (tmp_path / 'log').read_text() == 'old'
    assert torch.load(tmp_path / 'iter_1.pth', weights_only=True) == dict(old=1)


def test_errors_of_other_files_stay_as_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no_image\.png'), atomic_path(tmp_path / 'x'):
        (tmp_path / 'no_image.png').read_bytes()
    with pytest.raises(RuntimeError, match='of the network'), atomic_path(tmp_path / 'x'):
        raise RuntimeError('of the network')


def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch):
    warnings = []
    monkeypatch.setattr(files, 'print_log', lambda message, *args: warnings.append(message))

    def refuse(*args):
        raise OSError(37, 'No locks available')

    monkeypatch.setattr(files.fcntl, 'lockf', refuse)
    with hold(tmp_path / '.lock', 'the run', 'wait'):
        assert 'cannot be locked (No locks available)' in warnings[0]


def test_a_lock_that_is_held_is_refused(tmp_path):
    path = tmp_path / 'new' / '.lock'
    read, write = os.pipe()
    child = os.fork()
    if not child:
        with hold(path, 'the run', 'wait'):
            os.write(write, b'1')
            time.sleep(3600)
    os.read(read, 1)
    message = rf'the run is being worked on by process {child} on {platform.node()}: wait'
    try:
        with pytest.raises(BusyError, match=message), hold(path, 'the run', 'wait'):
            pass
    finally:
        os.kill(child, signal.SIGKILL)  # the system lets go of it
        os.waitpid(child, 0)
    with hold(path, 'the run', 'wait'):
        pass
