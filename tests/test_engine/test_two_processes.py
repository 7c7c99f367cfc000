"""Two processes whose SyncBN really exchanges statistics, and what they share without it."""

from pathlib import Path

import pytest
import torch
import train_together
from forked_tool import forked_ranks
from mmengine.registry import RUNNERS
from tiny_project import load_config, make_tree
from torch import nn
from train_together import LEAVES, METHODS, STEPS

from mmdmt.models.forward import BATCH_STATISTICS, image_metas, joint_forward

HERE = Path(__file__).resolve().parents[1]
RUNS = [*METHODS, 'cnn_transformer', *(name.split('/')[1] for name in LEAVES)]


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp('tree'), unlabeled=5)


def start(tree, folder, what):
    script = HERE / 'train_together.py'
    return forked_ranks(script, tree, folder, what, log=folder / 'ranks.log', PYTHONPATH=str(HERE))


@pytest.fixture(scope='module')
def trained(tree, tmp_path_factory):
    """Folder with the runs of both processes, by their names."""
    folder = tmp_path_factory.mktemp('together')
    for process in start(tree, folder, 'everything'):
        process.finish()
    return folder


def load(path):
    return torch.load(path, map_location='cpu', weights_only=True)


def states(folder, moment):
    """State and facts of both ranks."""
    found = [load(folder / f'{moment}.rank_{rank}.pth') for rank in range(2)]
    return [each['state'] for each in found], [each['facts'] for each in found]


def differing(first, second):
    assert first.keys() == second.keys()
    return {key for key, value in first.items() if not torch.equal(value, second[key])}


def running(keys):
    return {key for key in keys if key.endswith(('running_mean', 'running_var'))}


# ------------------------------------------------------------------------------- the emulation


def test_the_emulation_is_batch_norm_over_the_images_of_both_ranks(trained):
    images, weights = train_together.images_and_weights()
    layer = nn.BatchNorm2d(3)
    output = layer(images.requires_grad_())
    (output * weights).sum().backward()
    ranks = [load(trained / f'layer.rank_{rank}.pth') for rank in range(2)]
    for key, expected in dict(output=output, gradient=images.grad).items():
        torch.testing.assert_close(torch.cat([rank[key] for rank in ranks]), expected.detach())
    for key, expected in layer.state_dict().items():
        torch.testing.assert_close(ranks[0][key], expected)
    assert differing(*({key: rank[key] for key in layer.state_dict()} for rank in ranks)) == set()


@pytest.mark.parametrize('kind', BATCH_STATISTICS)
def test_statistics_are_collected_from_the_images_of_both_ranks(trained, kind):
    """Those of both domains, or of the unlabeled images alone, as in a single process."""
    network, sup, unsup = train_together.two_domains()
    network.train()
    if kind == 'domain':  # labeled images leave no trace in them
        network.encode_decode(unsup, image_metas(unsup))
    else:
        samples = train_together.labeled_samples(torch.zeros(len(sup), 32, 32))
        joint_forward(network, sup, samples, unsup, batch_statistics=kind)
    ranks = [load(trained / f'{kind}.rank_{rank}.pth') for rank in range(2)]
    assert differing(*ranks) == set()
    expected = network.state_dict()
    assert running(expected)
    for key in running(expected):
        torch.testing.assert_close(ranks[0][key], expected[key], rtol=1e-4, atol=1e-5)


def test_ranks_that_skip_different_layers_are_found_out_at_once(tree, tmp_path):
    """What the proof below must be able to see: the draws of sub-models as they once were."""
    for process in start(tree, tmp_path, 'different_draws'):
        text = process.finish(check=False)
        assert process.process.exitcode == 1
        assert 'the ranks exchange statistics of different layers: [' in text
        assert 'student.backbone.layer' in text
    assert not list(tmp_path.glob('*.pth'))


@pytest.mark.parametrize('method', METHODS)
def test_losses_and_gradients_of_a_rank_are_those_of_a_single_process(trained, method):
    """A loss that is reduced over the ranks before its gradient is taken loses a factor of them."""
    torch.set_num_threads(1)
    expected = train_together.gradients(method)
    for rank in range(2):
        found = load(trained / f'gradients.rank_{rank}.pth')[method]
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6, msg=key)


# ------------------------------------------------------------------------------- SyncBN


@pytest.mark.parametrize('name', RUNS)
def test_ranks_train_the_same_networks_with_exchanged_statistics(trained, name):
    """Students, teachers, statistics, banks, thresholds: all equal before anything is shared."""
    (first, second), facts = states(trained / name, 'end')
    steps = len(facts[0]['images'])
    assert facts[0]['exchanges'] == facts[1]['exchanges'] > 10 * steps
    # Each rank has images and random numbers of its own.
    assert facts[0]['images'] != facts[1]['images'] and facts[0]['seed'] != facts[1]['seed']
    assert differing(first, second) == set()
    assert all(value.isfinite().all() for value in first.values())
    assert first['iterations'] == steps
    collected = running(key for key in first if key.startswith('student'))
    assert collected and all(first[key].count_nonzero() for key in collected)


def test_state_that_follows_the_training_has_moved(trained):
    for name in ('fixmatch_teacher', 'unimatch'):
        (state, _), _ = states(trained / name, 'end')
        assert state['threshold.value'] != torch.tensor(0.3)
    (state, _), _ = states(trained / 'cross_teacher', 'end')
    assert (state['contrast.banks.l.counts'] == 3).any()
    (state, _), _ = states(trained / 'u2pl', 'end')
    # Of both ranks, in three steps after one with labeled images alone.
    total = state['contrast.queue.total']
    assert 9 < total.max() <= 2 * 3 * 3


def test_sub_models_have_skipped_blocks(trained):
    """A teacher of its own for each shift, or one for all, does not change what is skipped."""
    counts = {
        name: states(trained / name, 'end')[1][0]['exchanges']
        for name in ('mean_teacher', 'dual_teacher', 'dual_teacher_1')
    }
    # Two passes of the student, against one of Mean Teacher; whole ones would be twice as many.
    assert counts['mean_teacher'] < counts['dual_teacher'] < 2 * counts['mean_teacher']
    assert counts['dual_teacher'] == counts['dual_teacher_1']


def test_networks_are_validated_as_by_a_single_process(trained, tree, tmp_path):
    """Rank 0 has two of the three images, rank 1 pads its share with one of them."""
    runs = dict(train_together.methods(tree, tmp_path))
    cfg = load_config(dict(runs['cnn_transformer'], launcher='none'), tmp_path / 'tiny.py')
    cfg.merge_from_dict(dict(custom_hooks=[], work_dir=str(tmp_path)))
    alone = RUNNERS.build(cfg)
    for step in (2, STEPS):
        (first, second), metrics = states(trained / 'cnn_transformer', f'val_{step}')
        assert differing(first, second) == set()
        assert metrics[0] == metrics[1] and 'student_r/mIoU' in metrics[0]
        alone.model.load_state_dict(first)
        assert {key: float(value) for key, value in alone.val().items()} == metrics[0]


def test_a_stage_of_mutual_training_labels_and_learns_with_exchanged_statistics(trained):
    """Three of the five images are labeled by rank 0, two by rank 1."""
    for stage in ('stage_0_a', 'stage_1_a'):
        (first, second), facts = states(trained / 'chain' / stage, 'end')
        assert facts[0]['exchanges'] == facts[1]['exchanges'] > 0
        assert differing(first, second) == set()
        # One image of each source for each rank: a batch of 4, 2 of them without labels.
        assert [len(images) for images in facts[0]['images']] == [2, 2]


# ------------------------------------------------------------------------------- plain batch norm


def assert_averaged(before, after):
    """Running statistics are the means over both ranks; all else is that of rank 0."""
    for key, value in after.items():
        one, other = before[0][key], before[1][key]
        if running([key]):
            torch.testing.assert_close(value, (one + other) / 2, rtol=1e-6, atol=1e-7)
        else:
            assert torch.equal(value, one), key


def test_statistics_of_ordinary_batch_norm_are_averaged_for_a_checkpoint(trained):
    before, _ = states(trained / 'plain', 'end')
    differs = differing(*before)
    networks = ('student_l', 'student_r', 'teacher_l', 'teacher_r')
    # Of teachers, too; and banks that each rank fills by itself.
    assert all(any(key.startswith(name) for key in running(differs)) for name in networks)
    banks = {f'contrast.banks.{side}.{name}' for side in 'lr' for name in ('feats', 'counts')}
    assert differs <= banks | running(before[0])
    (first, second), _ = states(trained / 'plain', 'after')
    assert differing(first, second) == set()
    assert_averaged(before, first)
    saved = load(trained / 'plain' / f'iter_{STEPS}.pth')['state_dict']
    assert differing(saved, first) == set()


def test_all_ranks_validate_the_averaged_network(trained):
    """Also at step 2, where no checkpoint is saved."""
    for step in (2, STEPS):
        (first, second), _ = states(trained / 'plain', f'val_{step}')
        assert differing(first, second) == set()
    before, _ = states(trained / 'plain', 'end')
    assert_averaged(before, states(trained / 'plain', f'val_{STEPS}')[0][0])


# ------------------------------------------------------------------------------- total batch


def test_processes_share_the_total_batch(trained, tree, tmp_path):
    """In each step they learn from the images of a single process, at its learning rate."""
    torch.set_num_threads(1)
    cfg = dict(train_together.total(tree, tmp_path), launcher='none')
    (tmp_path / 'total').mkdir()
    RUNNERS.build(load_config(cfg, tmp_path / 'total' / 'tiny.py')).train()
    alone = load(tmp_path / 'total' / 'end.rank_0.pth')['facts']
    _, together = states(trained / 'total', 'end')
    assert alone['rates'] == together[0]['rates'] == [0.025] * STEPS
    for step in range(STEPS):
        shares = [rank['images'][step] for rank in together]
        assert [len(share) for share in shares] == [2, 2]
        assert sorted([*shares[0], *shares[1]]) == sorted(alone['images'][step])
