"""Every online method is killed in the middle and ends as if it were not.

With banks of features, earlier students, teachers that take turns or follow late, adaptive
thresholds. Chains are killed in test_mutual, Mean Teacher with workers in test_online_training.
"""

import pytest
import torch
from interruptions import add_hook, kill_held, make_hook, train
from tiny_project import base_config, make_tree, online, write_config
from train_together import METHODS

MAX_ITERS = 6
#: What each method has to save, most of it besides the weights of a student.
STATE = dict(
    fixmatch='student.backbone.conv1.weight',
    unimatch='threshold.value',
    cps='student_r.backbone.conv1.weight',
    cps_cutmix='student_r.backbone.conv1.weight',
    cutmix_seg='teacher.backbone.conv1.weight',
    released_dual_teacher='teacher_1.backbone.conv1.weight',
    u2pl='contrast.queue.total',
    prevmatch='previous.copies',
    augseg='teacher.backbone.conv1.weight',
    unimatch_v2='teacher.backbone.conv1.weight',
    dual_teacher='teacher_1.backbone.conv1.weight',
    cross_teacher='contrast.banks.l.feats',
    fixmatch_teacher='threshold.value',
)


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_hook(make_tree(tmp_path_factory.mktemp('tree'), labeled=7, unlabeled=5))


def write(tree, work_dir, method):
    work_dir.mkdir()
    settings = dict(METHODS[method])
    kind = f'mmdmt.{settings.pop("type")}'
    cfg = online(base_config(tree, work_dir, MAX_ITERS, interval=2), kind, **settings)
    cfg['default_hooks']['checkpoint']['max_keep_ckpts'] = 5
    return write_config(add_hook(cfg), work_dir / 'tiny.py')


def saved_at(work_dir, step):
    """State dict of the model, and momenta of the optimizer, after so many steps."""
    saved = torch.load(work_dir / f'iter_{step}.pth', weights_only=True)
    momenta = saved['optimizer']['state'].items()
    momenta = {f'momentum {index}': state['momentum_buffer'] for index, state in momenta}
    return dict(saved['state_dict'], **momenta)


@pytest.mark.parametrize('method', STATE)
def test_a_killed_run_ends_with_the_state_of_one_that_was_not(tree, tmp_path, method):
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    train(tree, write(tree, whole, method)).finish()
    config = write(tree, killed, method)
    kill_held(tree, config, 'before 5')
    assert not (killed / f'iter_{MAX_ITERS}.pth').exists()
    printed = train(tree, config, '--resume').finish()
    assert 'resumed epoch: 0, iter: 4' in printed
    expected, found = saved_at(whole, MAX_ITERS), saved_at(killed, MAX_ITERS)
    assert found.keys() == expected.keys() and 'momentum 0' in found
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    # The state moves after the checkpoint, so that a lost or stale one would be seen.
    assert not torch.equal(saved_at(whole, 4)[STATE[method]], expected[STATE[method]])
