"""The labeling benchmark: both ways give the same labels, and the figures are what was measured."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from PIL import Image
from tiny_project import base_config, make_tree

from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo import ClassBalancedThreshold

TOOL = Path(__file__).parents[2] / 'tools' / 'analysis_tools' / 'benchmark_pseudo_labels.py'


def load_tool():
    spec = importlib.util.spec_from_file_location('benchmark_pseudo_labels', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = load_tool()


@pytest.fixture
def setting(tmp_path):
    """A config file and a checkpoint of a network that is confident of some of its labels."""
    cfg = dict(base_config(make_tree(tmp_path / 'tree'), tmp_path), default_scope='mmseg')
    path = tmp_path / 'config.py'
    path.write_text('\n'.join(f'{key} = {cfg[key]!r}' for key in cfg))
    torch.manual_seed(0)
    init_default_scope('mmseg')
    model = build_segmentor(cfg['model'])
    model.decode_head.conv_seg.weight.data.mul_(100)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'weights.pth')
    return str(path), str(tmp_path / 'weights.pth')


def test_both_ways_agree_and_the_figures_fit_together(setting, tmp_path, capsys):
    config, checkpoint = setting
    result = benchmark.main(
        [config, '--checkpoint', checkpoint, '--repeats', '2', '--out', str(tmp_path / 'x.json')]
    )
    assert result['images'] == 6
    assert result['agreement'] > 0.99
    kept = result['kept_share']
    assert kept['one pass'] == pytest.approx(kept['two passes'], abs=0.01)
    one, two = (result['ways'][name] for name in benchmark.METHODS)
    # A header of 128 bytes and 8 bytes per pixel.
    assert two['bytes_per_image'] == 128 + 8 * 32 * 32
    assert result['size_ratio'] == pytest.approx(two['bytes_per_image'] / one['bytes_per_image'])
    assert result['size_ratio'] > 2
    for way in (one, two):
        assert len(way['seconds']) == 2
        assert way['images_per_second'] == pytest.approx(6 / np.median(way['seconds']))
    assert json.loads((tmp_path / 'x.json').read_text())['images'] == 6
    printed = capsys.readouterr().out
    assert '6 images' in printed
    rows = [line for line in printed.splitlines() if 'passes' in line or 'bytes/image' in line]
    assert len({len(row) for row in rows}) == 1 and f'{two["bytes_per_image"]:.0f}' in rows[1]


def test_the_straightforward_thresholds_are_those_of_the_library(tmp_path):
    rng = np.random.default_rng(0)
    maps = [(rng.integers(0, 4, (20, 30)), rng.random((20, 30), np.float32)) for _ in range(3)]
    way = benchmark.TwoPasses(tmp_path, {}, {}, 0)
    way._predict = lambda model, dataset: iter(maps)
    model = type('Model', (), dict(num_classes=5))
    expected = ClassBalancedThreshold(5)
    for label, confidence in maps:
        expected.update(label, confidence)
    for ratio in (0.05, 0.5, 1.0):
        found = way._thresholds(model, None, ratio)
        np.testing.assert_allclose(found, expected.compute(ratio).numpy())


def test_the_ways_take_turns(tmp_path):
    calls = []
    ways = {name: lambda out, name=name: calls.append((name, out.exists())) for name in 'ab'}
    seconds = benchmark.measure(ways, tmp_path, 3)
    assert [name for name, _ in calls] == list('abbaab')
    assert not any(exists for _, exists in calls)
    assert {name: len(values) for name, values in seconds.items()} == dict(a=3, b=3)


def test_a_folder_of_images_or_generated_ones(setting, tmp_path):
    config, checkpoint = setting
    (tmp_path / 'more' / 'sub').mkdir(parents=True)
    for index in range(3):
        pixels = np.full((20 + index, 24, 3), 50 * index, np.uint8)
        Image.fromarray(pixels).save(tmp_path / 'more' / 'sub' / f'{index}.png')
    common = [config, '--checkpoint', checkpoint, '--repeats', '1']
    folder = ['--img-dir', str(tmp_path / 'more'), '--img-suffix', '.png']
    assert benchmark.main([*common, *folder])['images'] == 3
    assert benchmark.main([*common, *folder, '--images', '2'])['images'] == 2
    assert benchmark.main([*common, '--toy-scenes', '--images', '2'])['images'] == 2


def test_a_labeled_only_config_gives_its_labeled_images(setting, tmp_path):
    text = Path(setting[0]).read_text()
    labeled_only = tmp_path / 'labeled_only.py'
    labeled_only.write_text(text.replace("'source_ratio': [1, 1]", "'source_ratio': [1, 0]"))
    assert labeled_only.read_text() != text
    assert benchmark.main([str(labeled_only), '--repeats', '1'])['images'] == 4


def test_without_a_checkpoint_the_network_starts_as_configured(setting):
    assert benchmark.main([setting[0], '--repeats', '1', '--images', '2'])['images'] == 2
    with pytest.raises(SystemExit):
        benchmark.main([setting[0], '--repeats', '0'])
