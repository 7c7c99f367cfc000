import json
import multiprocessing

import pytest
from forked_tool import PATIENCE

from mmdmt.engine.mutual.ledger import (
    Ledger,
    LedgerMismatchError,
    stage_table,
)
from mmdmt.engine.mutual.plan import MutualPlan
from mmdmt.files import BusyError


def finish(ledger, name, tmp_path, content=b'weights'):
    (tmp_path / name).mkdir(exist_ok=True)
    path = tmp_path / name / 'iter_3.pth'
    path.write_bytes(content)
    ledger.begin(name, {'lr': '0.1'})
    ledger.finish(name, str(path), dict(mIoU=41.5), 3.2)
    return path


def test_a_stage_is_done_while_its_checkpoint_is_whole(tmp_path):
    ledger = Ledger(str(tmp_path))
    assert not ledger.is_done('stage_0_a')
    path = finish(ledger, 'stage_0_a', tmp_path)
    again = Ledger(str(tmp_path))
    assert again.is_done('stage_0_a') and again.checkpoint('stage_0_a') == str(path)
    assert again.entry('stage_0_a')['metrics'] == dict(mIoU=41.5)
    path.write_bytes(b'weig')
    assert not again.is_done('stage_0_a')
    with pytest.raises(RuntimeError, match=r'stage_0_a.*missing or cut'):
        again.checkpoint('stage_0_a')


def test_the_work_dir_can_be_moved(tmp_path):
    finish(Ledger(str(tmp_path)), 'stage_0_a', tmp_path)
    moved = tmp_path.with_name('moved')
    tmp_path.rename(moved)
    assert Ledger(str(moved)).checkpoint('stage_0_a').startswith(str(moved))


def test_a_changed_config_is_refused_with_the_differing_keys(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.begin('stage_0_a', {'lr': '0.1', 'seed': '1', 'old': 'x'})
    ledger.begin('stage_0_a', {'lr': '0.1', 'seed': '1', 'old': 'x'})  # unchanged: fine
    with pytest.raises(LedgerMismatchError) as error:
        ledger.begin('stage_0_a', {'lr': '0.2', 'seed': '1', 'new': 'y'})
    text = str(error.value)
    assert 'lr: 0.1 -> 0.2' in text and 'old: x -> None' in text and 'new: None -> y' in text
    assert 'seed' not in text
    assert ledger.entry('stage_0_a')['config']['lr'] == '0.1'


def test_the_first_differences_are_listed_and_the_others_counted(tmp_path):
    ledger = Ledger(str(tmp_path))
    ledger.begin('stage_0_a', {f'key_{index:02}': '0' for index in range(23)})
    with pytest.raises(LedgerMismatchError) as error:
        ledger.begin('stage_0_a', {f'key_{index:02}': '1' for index in range(23)})
    lines = str(error.value).splitlines()
    assert lines[1] == '  key_00: 0 -> 1' and lines[20:22] == ['  key_19: 0 -> 1', '... and 3 more']


def test_a_damaged_ledger_is_refused_by_name(tmp_path):
    (tmp_path / 'stages.json').write_text('{"version": 1, "stag')
    with pytest.raises(RuntimeError, match=r'stages\.json is damaged'):
        Ledger(str(tmp_path)).read()
    (tmp_path / 'stages.json').write_text('{"version": 99, "stages": {}}')
    with pytest.raises(RuntimeError, match='version 99'):
        Ledger(str(tmp_path)).read()


@pytest.mark.parametrize('entry', ['done', {}, dict(state='done', checkpoint='stage_0_a/x.pth')])
def test_an_entry_that_lacks_something_is_refused_by_name(tmp_path, entry):
    content = dict(version=1, stages=dict(stage_0_a=entry))
    (tmp_path / 'stages.json').write_text(json.dumps(content))
    with pytest.raises(RuntimeError, match=r'stages\.json is damaged'):
        Ledger(str(tmp_path)).is_done('stage_0_a')


def test_a_stage_made_from_another_checkpoint_is_refused(tmp_path):
    ledger = Ledger(str(tmp_path))
    finish(ledger, 'stage_0_a', tmp_path)
    made_from = ledger.checksums(['stage_0_a'])
    ledger.begin('stage_1_a', {}, made_from)
    ledger.begin('stage_1_a', {}, made_from)  # resumed
    ledger.forget('stage_0_a')
    finish(ledger, 'stage_0_a', tmp_path, b'other weights')
    with pytest.raises(
        LedgerMismatchError, match=r"checkpoint of \['stage_0_a'\].*--redo stage_1_a"
    ):
        ledger.check('stage_1_a', {}, ledger.checksums(['stage_0_a']))


def _hold(work_dir, held, release):
    with Ledger(work_dir).hold('stage_0_a'):
        held.set()
        release.wait(PATIENCE)


def test_a_stage_belongs_to_one_process(tmp_path):
    context = multiprocessing.get_context('fork')
    held, release = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), held, release))
    other.start()
    assert held.wait(PATIENCE)
    ledger = Ledger(str(tmp_path))
    busy = pytest.raises(BusyError, match=rf'stage_0_a.*process {other.pid} on ')
    with busy, ledger.hold('stage_0_a'):
        pass
    with ledger.hold('stage_0_b'):
        pass
    other.kill()  # the system lets go of it
    other.join()
    with ledger.hold('stage_0_a'):
        pass


def test_a_crash_while_writing_leaves_the_old_ledger(tmp_path, monkeypatch):
    ledger = Ledger(str(tmp_path))
    ledger.begin('stage_0_a', {})
    monkeypatch.setattr('mmdmt.files.os.replace', _crash)
    with pytest.raises(KeyboardInterrupt):
        ledger.begin('stage_0_b', {})
    assert set(json.loads((tmp_path / 'stages.json').read_text())['stages']) == {'stage_0_a'}


def _crash(*_):
    raise KeyboardInterrupt


def _begin_many(work_dir, member):
    for index in range(20):
        Ledger(work_dir).begin(f'stage_{index}_{member}', {})


def test_two_processes_do_not_lose_each_others_entries(tmp_path):
    context = multiprocessing.get_context('fork')
    jobs = [context.Process(target=_begin_many, args=(str(tmp_path), m)) for m in 'ab']
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(Ledger(str(tmp_path)).read()) == 40


def test_table_shows_state_and_metric_of_every_stage(tmp_path):
    ledger = Ledger(str(tmp_path))
    finish(ledger, 'stage_0_a', tmp_path)
    lines = stage_table(MutualPlan([{}, {}], [0.5]).stages, ledger.read()).splitlines()
    assert len(lines) == 1 + 4
    assert 'done' in lines[1] and '41.50' in lines[1] and 'stage_0_a/iter_3.pth' in lines[1]
    assert 'pending' in lines[4] and 'stage_0_a' in lines[4] and '0.5' in lines[4]


def test_the_table_shows_the_gain_of_each_round_and_what_is_no_stage():
    plan = MutualPlan([dict(name='a')], [0.5, 1.0])
    entries = {
        name: dict(state='done', metrics={'accuracy/top1': value}, select='last')
        for name, value in (('stage_0_a', 40.0), ('stage_1_a', 38.5), ('ensemble', 44.0))
    }
    entries['stage_1_a']['selected_from'] = 'stage_0_a'
    title, *rows = stage_table(plan.stages, entries, 'accuracy/top1').splitlines()
    assert title.split()[5:8] == ['accuracy/top1', 'gain', 'total']
    assert rows[0].split() == ['stage_0_a', 'ground', 'truth', 'done', '40.00', 'last']
    assert rows[1].split()[3:] == ['done', '38.50', '-1.50', '-1.50', 'stage_0_a']
    assert rows[2].split() == ['stage_2_a', 'stage_1_a', '1', 'pending']
    assert rows[3].split() == ['ensemble', 'done', '44.00', 'last']
    entries['stage_2_a'] = dict(state='done', metrics={'accuracy/top1': 43.0})
    assert '+4.50  +3.00' in stage_table(plan.stages, entries, 'accuracy/top1').splitlines()[3]


def test_an_entry_can_be_forgotten_and_begun_otherwise(tmp_path):
    ledger = Ledger(str(tmp_path))
    finish(ledger, 'stage_0_a', tmp_path)
    ledger.begin('ensemble', {'a': '1'})
    ledger.forget('ensemble')
    ledger.forget('ensemble')  # nothing to forget
    assert set(ledger.read()) == {'stage_0_a'}
    ledger.begin('ensemble', {'a': '2'})


def test_a_record_keeps_what_else_is_known_of_a_stage(tmp_path):
    ledger = Ledger(str(tmp_path))
    path = finish(ledger, 'stage_0_a', tmp_path)
    ledger.begin('stage_1_a', {})
    ledger.finish('stage_1_a', str(path), {}, 1.0, select='best', selected_from='stage_0_a')
    entry = Ledger(str(tmp_path)).entry('stage_1_a')
    assert (entry['select'], entry['selected_from']) == ('best', 'stage_0_a')
    assert ledger.checkpoint('stage_1_a') == str(path)
