import os
import platform

import pytest

from mmdmt.files import atomic_path, remove_stale_temporaries, write_text_atomically


def test_file_appears_only_when_the_block_ends(tmp_path):
    path = tmp_path / 'sub' / 'file.txt'
    with atomic_path(path) as temporary:
        temporary.write_text('new')
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == 'new'
    assert list(path.parent.iterdir()) == [path]


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
