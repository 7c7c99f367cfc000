import importlib.util
import json
from collections import Counter
from pathlib import Path

import pytest
from tiny_classification import make_cifar, make_folders

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'misc' / 'split_classes.py'
spec = importlib.util.spec_from_file_location('split_classes', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def run(root, *args):
    out = root / 'splits'
    sizes = ['--per-class', '2', '4', '--val-per-class', '3', '--seeds', '1', '2']
    base = ['--img-dir', str(root / 'train'), '--out-dir', str(out)]
    return tool.main([*base, *sizes, *args]), out


def test_lists_of_a_folder(tmp_path):
    status, out = run(make_folders(tmp_path))
    assert status == 0
    for count, seed in ((6, 1), (12, 1), (6, 2), (12, 2)):
        folder = out / str(count) / f'seed_{seed}'
        lists = [(folder / f'{k}.txt').read_text().split() for k in ('labeled', 'unlabeled')]
        val = (out / 'validation' / 'val.txt').read_text().split()
        assert [len(names) for names in (*lists, val)] == [count, 27 - count, 9]
        assert len({*lists[0], *lists[1], *val}) == 36
    manifest = json.loads((out / 'manifest.json').read_text())['sets']
    assert set(manifest) == {'6/seed_1', '12/seed_1', '6/seed_2', '12/seed_2', 'validation'}
    assert manifest['6/seed_1']['lists']['labeled']['size'] == 6


def test_the_same_again_and_other_lists_are_refused(tmp_path, capsys):
    root = make_folders(tmp_path)
    assert run(root)[0] == 0
    assert run(root)[0] == 0
    (root / 'train' / 'red' / '000.png').unlink()
    assert run(root)[0] == 1
    assert 'exist with other content' in capsys.readouterr().err
    assert run(root, '--force')[0] == 0


def test_too_few_images(tmp_path, capsys):
    root = make_folders(tmp_path, per_class=5)
    assert run(root)[0] == 1
    assert 'a class has 5 images' in capsys.readouterr().err


def test_a_class_folder_without_images_is_refused(tmp_path, capsys):
    root = make_folders(tmp_path)
    (root / 'train' / 'pink').mkdir()
    status, out = run(root)
    assert status == 1 and not out.exists()
    assert 'the classes pink have no image' in capsys.readouterr().err


def test_lists_of_cifar(tmp_path, monkeypatch):
    from mmpretrain.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, '_check_integrity', lambda self: True)
    root, out = make_cifar(tmp_path, per_file=20), tmp_path / 'splits'
    base = ['--dataset', 'CIFAR10', '--data-root', str(root), '--out-dir', str(out)]
    assert tool.main([*base, '--per-class', '2', '--val-per-class', '1', '--seeds', '3']) == 0
    sets = {
        path.stem: set(path.read_text().split())
        for path in [*(out / '20' / 'seed_3').glob('*.txt'), out / 'validation' / 'val.txt']
    }
    assert {kind: len(names) for kind, names in sets.items()} == dict(
        labeled=20, unlabeled=70, val=10
    )
    assert set.union(*sets.values()) == {f'{number:05}' for number in range(100)}
    # `make_cifar` numbers the classes in turn.
    assert Counter(int(name) % 10 for name in sets['labeled']) == dict.fromkeys(range(10), 2)
    manifest = json.loads((out / 'manifest.json').read_text())['sets']
    assert manifest['20/seed_3']['lists']['labeled']['size'] == 20


def test_a_data_set_needs_its_folder(capsys):
    with pytest.raises(SystemExit):
        tool.main(['--dataset', 'CIFAR10', '--out-dir', 'splits'])
    assert '--data-root' in capsys.readouterr().err
