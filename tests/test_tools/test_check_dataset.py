import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_data_tree import LABELED, NUM_CLASSES, DataTree

TOOL = Path(__file__).parents[2] / 'tools/misc/check_dataset.py'
spec = importlib.util.spec_from_file_location('check_dataset_tool', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def tree(tmp_path):
    return DataTree(tmp_path / 'data')


@pytest.fixture
def config(tree, tmp_path):
    (tmp_path / 'config.py').write_text(
        f'default_scope = "mmseg"\n'
        f'train_dataloader = dict(dataset={tree.train_config()})\n'
        f'val_dataloader = dict(dataset={tree.config("val")})\n'
    )
    return str(tmp_path / 'config.py')


def folder_arguments(tree):
    lists = [f'--{kind}={tree.list(kind)}' for kind in ('labeled', 'unlabeled', 'val')]
    folders = [f'--img-dir={tree.root / "img"}', f'--mask-dir={tree.root / "ann"}']
    return [*folders, *lists, f'--num-classes={NUM_CLASSES}']


@pytest.mark.parametrize('is_terminal', [True, False])
def test_sound_data(config, tree, capsys, monkeypatch, is_terminal):
    monkeypatch.setattr(sys.stderr, 'isatty', lambda: is_terminal)
    assert tool.main([config]) == 0
    assert tool.main(folder_arguments(tree)) == 0
    captured = capsys.readouterr()
    assert captured.out == 'no problems in the data\n' * 2
    if is_terminal:
        assert captured.err.count('decoding images and masks: 100%') >= 2
        assert '6/6' in captured.err
    else:  # no bar in a log file
        assert captured.err == ''


def test_folders_without_lists_or_masks(tree, capsys):
    images, masks = folder_arguments(tree)[:2]
    assert tool.main([images]) == 0
    assert tool.main([images, masks, f'--num-classes={NUM_CLASSES}']) == 0
    tree.mask('d').unlink()
    capsys.readouterr()
    assert tool.main([images, masks]) == 1  # every image is labeled now, and no list names it
    assert f'missing mask  {tree.image("d")}  {tree.mask("d")}' in capsys.readouterr().out
    labeled = f'--labeled={tree.list("labeled")}'
    assert tool.main([images, masks, labeled, '--num-classes=1']) == 1
    assert f'(label id: {len(LABELED)})' in capsys.readouterr().out


@pytest.mark.parametrize('by_config', [True, False])
def test_problems_in_one_table_and_as_json(config, tree, tmp_path, capsys, by_config):
    tree.image('d').unlink()
    tree.write_mask('v', np.full((40, 48), 9, np.uint8))
    arguments = [config] if by_config else folder_arguments(tree)
    assert tool.main([*arguments, f'--json={tmp_path / "out.json"}']) == 1
    out = capsys.readouterr().out
    assert out.startswith('2 problems in the data (missing image: 1, label id: 1)')
    assert f'{tree.list("unlabeled")}:1' in out
    written = json.loads((tmp_path / 'out.json').read_text())
    assert [(p['kind'], p['line']) for p in written] == [('missing image', 1), ('label id', 1)]
    assert set(written[0]) == {'kind', 'file', 'line', 'found', 'fix'}


def test_json_of_sound_data_is_an_empty_list(config, tmp_path):
    assert tool.main([config, '--json', str(tmp_path / 'out.json')]) == 0
    assert json.loads((tmp_path / 'out.json').read_text()) == []


def test_fast_does_not_decode(config, tree, capsys):
    tree.write_mask('a', np.full((40, 48), 9, np.uint8))
    assert tool.main([config, '--full']) == 1
    assert tool.main([config, '--fast']) == 0
    assert 'not decoded' in capsys.readouterr().out


def test_options_override_the_config(config, tree):
    options = ['--cfg-options', 'train_dataloader.dataset.datasets.0.ann_file=nowhere.txt']
    assert tool.main([config]) == 0
    assert tool.main([config, *options]) == 1


def test_one_data_root_for_all_as_in_training(tree, tmp_path, capsys):
    root = Path(__file__).parents[2]
    (tmp_path / 'own.py').write_text(
        f"_base_ = ['{root}/configs/_base_/datasets/folder.py']\n"
        "custom_imports = dict(imports=['mmdmt'])\n"
    )
    options = ['--cfg-options', f'data_root={tmp_path / "elsewhere"}']
    assert tool.main([str(tmp_path / 'own.py'), *options]) == 1
    out = capsys.readouterr().out
    assert str(tmp_path / 'elsewhere') in out
    assert 'data/' not in out


def test_rows_can_be_limited(config, tree, capsys):
    for path in (tree.root / 'ann').rglob('*.png'):
        path.unlink()
    assert tool.main([config, '--max-rows=1']) == 1
    assert '... and 3 more' in capsys.readouterr().out


def test_cache_is_what_training_looks_at(config, tree, tmp_path):
    assert tool.main([config, f'--cache={tmp_path / "work/dataset_check.json"}']) == 0
    entries = json.loads((tmp_path / 'work/dataset_check.json').read_text())
    assert str(tree.image('a')) in entries['image']


def test_config_without_data(tmp_path):
    (tmp_path / 'empty.py').write_text('model = dict()\n')
    with pytest.raises(SystemExit, match=r'empty\.py has no train_dataloader\.dataset'):
        tool.main([str(tmp_path / 'empty.py')])


@pytest.mark.parametrize(
    'arguments',
    [[], ['config.py', '--img-dir=img'], ['--img-dir=img', '--labeled=list.txt']],
)
def test_wrong_command_lines(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        tool.main(arguments)
    assert caught.value.code == 2
