import pytest
import torch
from forked_tool import forked_ranks

from mmdmt import distributed
from mmdmt.distributed import from_main, share_buffers


class Wire:
    """Two ranks in one process: the first sends, the second then receives."""

    def __init__(self, monkeypatch):
        self.monkeypatch = monkeypatch
        self.sent = None

    def as_rank(self, rank, function):
        self.monkeypatch.setattr(distributed, 'is_main_process', lambda: rank == 0)
        self.monkeypatch.setattr(distributed, 'broadcast_object_list', self.broadcast(rank))
        return from_main(function)

    def broadcast(self, rank):
        def send(values):
            self.sent = list(values)

        def receive(values):
            values[:] = self.sent

        return receive if rank else send


@pytest.fixture
def wire(monkeypatch):
    return Wire(monkeypatch)


def never():
    raise AssertionError('only the first rank may run it')


def test_without_a_process_group_it_is_a_call():
    assert from_main(lambda: 3) == 3


def test_all_ranks_get_what_the_first_found(wire):
    assert wire.as_rank(0, lambda: 'found') == 'found'
    assert wire.as_rank(1, never) == 'found'


def test_all_ranks_raise_what_the_first_raised(wire):
    def fail():
        raise FileNotFoundError('no such list')

    for rank, function in enumerate([fail, never]):
        with pytest.raises(FileNotFoundError, match='no such list'):
            wire.as_rank(rank, function)


def test_an_error_that_cannot_be_sent_still_reaches_all_ranks(wire):
    class LocalError(ValueError):
        pass

    def fail():
        raise LocalError('held by the first rank')

    with pytest.raises(LocalError):
        wire.as_rank(0, fail)
    with pytest.raises(RuntimeError, match='held by the first rank'):
        wire.as_rank(1, never)


# One rank fails; the other waits for it in a collective, or is busy without asking for it.
ENDS = """
import os
import time

import torch

from mmdmt.distributed import join_process_group

join_process_group('pytorch', {})
join_process_group('pytorch', {})  # again, by another runner
rank, how = int(os.environ['RANK']), os.environ['HOW'].split()
if 'caught' in how:
    try:
        raise ValueError('caught on this rank only')
    except ValueError:
        pass
    torch.distributed.barrier()
elif how[0] == str(rank):
    raise ValueError('an image is broken')
elif how[1] == 'waits':
    torch.distributed.barrier()
else:
    time.sleep(3600)
"""


@pytest.mark.parametrize('how', ['0 waits', '1 waits', '0 busy', '1 busy', 'caught'])
def test_an_error_that_ends_one_rank_ends_all(tmp_path, how):
    script = tmp_path / 'script.py'
    script.write_text(ENDS)
    ranks = forked_ranks(script, log=tmp_path / 'log', HOW=how)
    printed = [tool.finish(check=how == 'caught') for tool in ranks]
    assert [tool.process.exitcode for tool in ranks] == [int(how != 'caught')] * 2
    failed = f'rank {how[0]} (process {ranks[int(how[0] == "1")].process.pid} on '
    for rank, text in enumerate(printed):
        assert ('ValueError: an image is broken' in text) == (how != 'caught')
        assert (failed in text) == (how != 'caught' and str(rank) != how[0])


def test_ranks_that_agree_keep_their_statistics_to_the_last_bit(monkeypatch):
    """Sharing twice, as before a validation and a checkpoint, is sharing once."""
    sent = []
    monkeypatch.setattr(distributed, 'all_reduce', lambda data, op: data.mul_(3).div_(3))
    monkeypatch.setattr(distributed, 'broadcast', lambda data, src: sent.append((data, src)))
    layer = torch.nn.BatchNorm1d(1000)
    layer.running_mean.normal_()
    before = layer.running_mean.clone()
    assert not torch.equal(before * 3 / 3, before)
    share_buffers(layer)
    assert torch.equal(layer.running_mean, before)
    # Counters are no averages: they come from the first rank, once.
    assert [(id(data), src) for data, src in sent] == [(id(layer.num_batches_tracked), 0)]
