"""Training on two ranks of which one meets an error: both end with its message, and go on later."""

import re

import pytest
from interruptions import add_hook, fail, make_hook, train
from tiny_project import base_config, labeled_only, make_tree, mutual, write_config

FULL = 'cannot write into {} (No space left on device)'


@pytest.fixture
def tree(tmp_path):
    return make_hook(make_tree(tmp_path / 'tree'))


def write(cfg, work_dir):
    cfg['default_hooks']['dataset_check'] = dict(type='mmdmt.DatasetCheckHook', mode='off')
    work_dir.mkdir()
    return write_config(add_hook(cfg), work_dir / 'tiny.py')


def break_image(tree, name):
    """Damage an image; returns its content."""
    path = tree / 'img' / f'{name}.png'
    content = path.read_bytes()
    path.write_bytes(content[:100])
    return path, content


def assert_told(printed, rank, message):
    """The error of a rank alone is printed by the other one, too, with that rank's number."""
    told = re.search(rf'rank {rank} \(process .*all ranks end: (.*)', printed[1 - rank])
    assert told, printed[1 - rank]
    assert message in told[1] and told[1] in printed[rank], '\n'.join(printed)


def test_errors_of_a_run(tree, tmp_path):
    work_dir = tmp_path / 'run'
    cfg = labeled_only(base_config(tree, work_dir, max_iters=4))
    cfg['train_cfg']['val_interval'] = 4
    config = write(cfg, work_dir)

    printed = fail(tree, config, '1 after 0')
    assert_told(printed, 1, 'ValueError: failed after 0')

    printed = fail(tree, config, '0 writing iter_2.pth')
    assert_told(printed, 0, FULL.format(work_dir))
    assert not list(work_dir.rglob('*iter_2*'))

    path, content = break_image(tree, 'val_1')  # of the second rank
    printed = fail(tree, config, '')
    assert_told(printed, 1, 'image file')

    path.write_bytes(content)
    assert 'iter: 4' in train(tree, config, '--resume').finish()


def test_errors_of_a_chain(tree, tmp_path):
    work_dir = tmp_path / 'chain'
    cfg = mutual(
        base_config(tree, work_dir),
        members=[dict(name='a')],
        ratios=[1.0],
        supervised=dict(max_iters=2),
        round=dict(max_iters=2, source_ratio=[1, 3]),
    )
    config = write(cfg, work_dir)

    printed = fail(tree, config, '0 writing stages.json')
    assert all(FULL.format(work_dir) in text for text in printed)

    path, content = break_image(tree, 'unlabeled_1')  # of the second rank
    printed = fail(tree, config, '')
    assert_told(printed, 1, f'UnreadableImageError: {path} cannot be loaded')
    path.write_bytes(content)

    printed = fail(tree, config, '0 writing manifest.json')
    folder = work_dir / 'stage_1_a' / 'pseudo_labels'
    assert all(FULL.format(folder) in text for text in printed)

    assert 'stage_1_a: done' in train(tree, config).finish()
    assert not list(tmp_path.rglob('*.partial-*'))
