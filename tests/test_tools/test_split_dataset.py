import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmdmt.datasets.splits import difference_maximized_subsets, nested_splits
from mmdmt.datasets.splits.files import describe_list, read_list, write_list
from mmdmt.version import __version__

ROOT = Path(__file__).parents[2]
GOLDEN = json.loads((ROOT / 'tests/data/golden/splits.json').read_text())['city_like']
spec = importlib.util.spec_from_file_location(
    'split_dataset_tool', ROOT / 'tools/misc/split_dataset.py'
)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

NAMES = [f'img_{i:02d}' for i in range(20)]


@pytest.fixture
def name_list(tmp_path):
    write_list(tmp_path / 'all.txt', NAMES)
    return f'--list={tmp_path / "all.txt"}'


def out_dir(tmp_path):
    return f'--out-dir={tmp_path / "out"}'


def written(tmp_path):
    out = tmp_path / 'out'
    return {str(path.relative_to(out)) for path in out.rglob('*') if path.is_file()}


def digest(path):
    return describe_list(read_list(path))['sha256']


def read_manifest(tmp_path):
    return json.loads((tmp_path / 'out/manifest.json').read_text())['sets']


def test_published_lists_byte_for_byte(tmp_path):
    names = [GOLDEN['name_format'] % i for i in range(GOLDEN['total'])]
    write_list(tmp_path / 'all.txt', names[::-1])
    arguments = [f'--list={tmp_path / "all.txt"}', out_dir(tmp_path), '--difference-maximized']
    denominators = [str(d) for d in GOLDEN['denominators']]
    assert tool.main([*arguments, '--denominators', *denominators]) == 0
    for key, expected in GOLDEN['sets'].items():
        folder = tmp_path / 'out' / '1_{}/fold_{}'.format(*key.split('_'))
        assert digest(folder / 'labeled.txt') == expected['sha256']
        assert len(read_list(folder / 'unlabeled.txt')) == expected['n_unlabeled']
        subsets = GOLDEN['difference_maximized'][key]
        assert digest(folder / 'left.txt') == subsets['left_sha256']
        assert digest(folder / 'right.txt') == subsets['right_sha256']


def test_what_is_written_and_printed(name_list, tmp_path, capsys):
    sizes = ['--denominators=4', '--fractions=0.1', '--counts=7', '--folds=1']
    assert tool.main([name_list, out_dir(tmp_path), *sizes]) == 0
    assert written(tmp_path) == {
        'manifest.json',
        *(
            f'{name}/fold_0/{kind}.txt'
            for name in ('1_4', 'fraction_0.1', 'count_7')
            for kind in ('labeled', 'unlabeled')
        ),
    }
    out = capsys.readouterr().out
    assert '20 ids from list' in out
    assert 'count_7/fold_0: 7 labeled, 13 unlabeled' in out
    assert 'wrote 6 lists and manifest.json to' in out


def test_manifest(name_list, tmp_path):
    arguments = ['--denominators=4', '--folds=1', '--seed=5', '--difference-maximized']
    assert tool.main([name_list, out_dir(tmp_path), *arguments]) == 0
    splits = nested_splits(NAMES, [4], 1, 5)
    subsets = difference_maximized_subsets(splits[4, 0][0], rng=5)
    lists = dict(zip(('labeled', 'unlabeled', 'left', 'right'), (*splits[4, 0], *subsets)))
    assert read_manifest(tmp_path) == {
        '1_4/fold_0': {
            'method': 'shuffled prefix',
            'seed': 5,
            'parent': dict(source=str(tmp_path / 'all.txt'), **describe_list(NAMES)),
            'common': 0.6,
            'tool_version': __version__,
            'lists': {kind: describe_list(ids) for kind, ids in lists.items()},
        }
    }


def test_folder_of_images(tmp_path):
    for name in ('b.png', 'sub/a.png', 'sub/no.txt'):
        (tmp_path / 'img' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'img' / name).touch()
    arguments = [f'--img-dir={tmp_path / "img"}', '--img-suffix=.png', '--counts=1', '--folds=1']
    assert tool.main([*arguments, out_dir(tmp_path)]) == 0
    folder = tmp_path / 'out/count_1/fold_0'
    ids = read_list(folder / 'labeled.txt') + read_list(folder / 'unlabeled.txt')
    assert sorted(ids) == ['b', 'sub/a']


@pytest.fixture
def masks(tmp_path):
    """Class 2 is in one image, class 1 in two, class 0 and ignored pixels everywhere."""
    extra = {NAMES[3]: 2, NAMES[8]: 1, NAMES[9]: 1}
    (tmp_path / 'masks').mkdir()
    for name in NAMES:
        mask = np.array([[0, extra.get(name, 0), 255]], np.uint8)
        Image.fromarray(mask).save(tmp_path / 'masks' / f'{name}_gt.png')
    return ['--class-aware', f'--mask-dir={tmp_path / "masks"}', '--mask-suffix=_gt.png']


def test_class_aware(name_list, masks, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: True)
    sizes = ['--counts', '1', '2', '--denominators', '5', '--folds=2', '--num-classes=3']
    assert tool.main([name_list, out_dir(tmp_path), *masks, *sizes]) == 0
    for fold in range(2):
        labeled = read_list(tmp_path / f'out/1_5/fold_{fold}/labeled.txt')
        assert len(labeled) == 4
        assert NAMES[3] in labeled
        assert {NAMES[8], NAMES[9]} & set(labeled)
        assert labeled[:2] == read_list(tmp_path / f'out/count_2/fold_{fold}/labeled.txt')
    manifest = read_manifest(tmp_path)
    assert manifest['1_5/fold_0']['method'] == 'class-aware'
    assert manifest['count_2/fold_0']['missing_classes'] == []
    assert len(manifest['count_1/fold_0']['missing_classes']) == 1
    captured = capsys.readouterr()
    assert captured.out.count('WARNING: too small to show the classes') == 2
    assert '20/20' in captured.err  # the bar of reading masks


def test_images_with_masks_are_the_labeled_ones(name_list, masks, tmp_path, capsys):
    for name in NAMES[4:]:
        (tmp_path / 'masks' / f'{name}_gt.png').unlink()
    arguments = [name_list, out_dir(tmp_path), *masks[1:]]
    assert tool.main([*arguments, '--by-mask']) == 0
    assert sorted(read_list(tmp_path / 'out/labeled.txt')) == sorted(NAMES[:4])
    assert sorted(read_list(tmp_path / 'out/unlabeled.txt')) == sorted(NAMES[4:])
    assert read_manifest(tmp_path)['.']['method'] == 'by mask'
    sizes = ['--counts=2', '--num-classes=3', '--class-aware']
    assert tool.main([*arguments, *sizes]) == 1
    assert '_gt.png: --by-mask makes the list' in capsys.readouterr().err
    assert tool.main([*arguments[:-1], '--mask-suffix=.tif', '--by-mask']) == 1
    assert 'no image would be labeled: masks are looked for as' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.main([*arguments, '--by-mask', '--counts=2'])
    assert '--by-mask draws nothing' in capsys.readouterr().err


def test_class_aware_refuses_foreign_ids(name_list, masks, tmp_path, capsys):
    arguments = [name_list, out_dir(tmp_path), *masks, '--counts=2', '--num-classes=2']
    assert tool.main(arguments) == 1
    assert 'has ids [2] outside the 2 classes' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()
    assert tool.main([*arguments, '--reduce-zero-label']) == 0
    assert read_manifest(tmp_path)['count_2/fold_0']['missing_classes'] == []
    (tmp_path / 'masks' / f'{NAMES[0]}_gt.png').unlink()
    assert tool.main(arguments) == 1
    assert 'img_00_gt.png: --by-mask makes' in capsys.readouterr().err
    (tmp_path / 'masks' / f'{NAMES[0]}_gt.png').write_bytes(b'broken')
    assert tool.main(arguments) == 1
    assert 'img_00_gt.png cannot be read' in capsys.readouterr().err


def test_other_lists_are_kept_unless_forced(name_list, tmp_path, capsys):
    arguments = [name_list, out_dir(tmp_path), '--counts=5', '--folds=1']
    path = tmp_path / 'out/count_5/fold_0/labeled.txt'
    assert tool.main(arguments) == 0
    before = path.read_bytes()
    assert tool.main(arguments) == 0  # the same again is no conflict
    assert tool.main([*arguments, '--seed=1']) == 1
    assert '--force' in capsys.readouterr().err
    assert path.read_bytes() == before
    assert tool.main([*arguments, '--seed=1', '--force']) == 0
    assert path.read_bytes() != before
    assert read_manifest(tmp_path)['count_5/fold_0']['seed'] == 1


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--counts=21'], 'count 21 is not a whole number from 1 to 20'),
        (['--fractions=0.01'], 'fraction 0.01 leaves no labeled image of 20'),
        (['--fractions=1.5'], 'fraction 1.5 is outside (0, 1]'),
        (['--denominators=0.2'], 'denominator 0.2 is below 1'),
        (['--counts=2', '--folds=0'], 'folds=0'),
    ],
)
def test_bad_sizes(name_list, tmp_path, capsys, arguments, message):
    assert tool.main([name_list, out_dir(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_nothing_to_split(tmp_path, capsys):
    arguments = [out_dir(tmp_path), '--counts=1']
    assert tool.main([f'--img-dir={tmp_path}', *arguments]) == 1
    assert 'there are no images' in capsys.readouterr().err
    assert tool.main([f'--list={tmp_path / "no.txt"}', *arguments]) == 1
    assert 'no.txt does not exist' in capsys.readouterr().err


@pytest.mark.parametrize(
    'arguments', [[], ['--counts=2', '--class-aware'], ['--counts=2', '--common=2']]
)
def test_wrong_command_lines(name_list, tmp_path, arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main([name_list, out_dir(tmp_path), *arguments])
    assert caught.value.code == 2
