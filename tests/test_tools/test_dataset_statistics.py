import ast
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from tiny_bands import bands_config, make_tree, write_geotiff
from tiny_project import write_config

from mmdmt.datasets.statistics import BandStatistics, class_weights

TOOL = Path(__file__).parents[2] / 'tools/misc/dataset_statistics.py'
spec = importlib.util.spec_from_file_location('dataset_statistics_tool', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


def images(dtype, count=4):
    rng = np.random.default_rng(0)
    sizes = [(9 + i, 13 - i, 3) for i in range(count)]
    return [(rng.gamma(2, 400, size) - 300).astype(dtype) for size in sizes]


@pytest.mark.parametrize('dtype', [np.int16, np.int32, np.float32])
def test_statistics_are_those_of_numpy(dtype):
    statistics, found = BandStatistics(), images(dtype)
    masks = [np.random.default_rng(1).random(image.shape) < 0.8 for image in found]
    if dtype == np.float32:
        found[0][0, 0, 0], found[1][2, 2, 1] = np.nan, np.inf
    for step in (statistics.update, statistics.count):
        for image, valid in zip(found, masks):
            step(image, valid)
    for band in range(3):
        values = np.concatenate(
            [image[..., band][valid[..., band]] for image, valid in zip(found, masks)]
        ).astype(np.float64)
        values = values[np.isfinite(values)]
        assert statistics.pixels[band] == len(values)
        assert statistics.mean[band] == pytest.approx(values.mean(), rel=1e-12)
        assert statistics.std[band] == pytest.approx(values.std(), rel=1e-12)
        assert (statistics.low[band], statistics.high[band]) == (values.min(), values.max())
        shares = [0.0, 0.01, 0.3, 0.5, 0.99, 1.0]
        expected = np.quantile(values, shares, method='inverted_cdf')
        got = [row[band] for row in statistics.percentiles(shares)]
        fine = 0 if dtype != np.float32 else (values.max() - values.min()) / 65535
        np.testing.assert_allclose(got, expected, atol=fine + 1e-9)


def test_values_of_0_to_1_have_percentiles():
    statistics = BandStatistics()
    image = np.random.default_rng(0).random((50, 60, 1)).astype(np.float32)
    for step in (statistics.update, statistics.count):
        step(image)
    assert statistics.percentiles([0.25])[0][0] == pytest.approx(np.quantile(image, 0.25), abs=1e-3)
    with pytest.raises(ValueError, match='an image has 2 bands, others have 1'):
        statistics.update(np.zeros((2, 2, 2)))


def test_class_weights():
    weights = class_weights([900, 100, 0])
    assert weights == pytest.approx([0.5, 1.5, 0])
    assert class_weights([0, 0]) == []


def lines_of(text):
    found = (line.partition('=') for line in text.splitlines() if '=' in line)
    return {key: ast.literal_eval(value.rstrip(',')) for key, _, value in found}


def test_a_folder(tmp_path, capsys):
    found = [np.maximum(image, 1) for image in images(np.uint16)]
    for index, image in enumerate(found):
        image[0] = 0
        write_geotiff(tmp_path / f'{index}.tif', image, nodata=0)
    arguments = [str(tmp_path), '--bands', '2', '0']
    assert tool.main(arguments) == 0
    lines = lines_of(capsys.readouterr().out)
    for place, band in enumerate((2, 0)):
        values = np.concatenate([image[1:, :, band].ravel() for image in found]).astype(float)
        assert lines['mean'][place] == pytest.approx(values.mean(), rel=1e-5)
        assert lines['std'][place] == pytest.approx(values.std(), rel=1e-5)
        ends = np.quantile(values, [0.01, 0.99], method='inverted_cdf')
        assert [row[place] for row in lines['value_range']] == pytest.approx(ends)
    assert lines['in_channels'] == 2
    assert tool.main([str(tmp_path), '--bands', '7']) == 1
    assert 'not [7]' in capsys.readouterr().err
    assert tool.main([str(tmp_path), '--suffix', '.png']) == 1
    assert 'has no images' in capsys.readouterr().err


def test_a_config_with_masks(tmp_path, capsys):
    tree = make_tree(tmp_path / 'data')
    config = write_config(bands_config(tree, tmp_path / 'work', bands=[3, 1]), tmp_path / 'c.py')
    assert tool.main([str(config)]) == 0
    out = capsys.readouterr().out
    lines = lines_of(out)
    assert '7 images' in out  # labeled and unlabeled, not those of validation
    assert '3 masks' in out
    assert 'object' in out
    assert lines['in_channels'] == 2
    assert len(lines['class_weight']) == 2
