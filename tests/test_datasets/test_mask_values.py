import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmdmt.checkpoint import UntrustedCheckpointError, read_stored_config
from mmdmt.config import resolve_config
from mmdmt.datasets import LoadAnnotationsAtImageSize, LoadMasks
from mmdmt.datasets.mask_values import MaskValueError, MaskValues
from mmdmt.export.stored_types import check_stored_config

POLYP = {0: 'background', 255: 'polyp'}
RED, BLACK, BLUE = (255, 0, 0), (0, 0, 0), (0, 0, 255)


def loaded(path, values, **info):
    info = dict(dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[]), **info)
    return LoadMasks(mask_values=values)(info)['gt_seg_map']


def saved(path, pixels):
    Image.fromarray(np.array(pixels)).save(path)
    return path


@pytest.mark.parametrize(
    ('values', 'pixels', 'expected'),
    [
        (POLYP, [[0, 255]], [[0, 1]]),
        ([0, 255], [[0, 255]], [[0, 1]]),
        ({'0': 'background', '255': 'polyp'}, [[255, 0]], [[1, 0]]),  # as JSON has it
        ({255: 'polyp', 0: 'background'}, [[0, 255]], [[1, 0]]),  # order of the names
        ({3: 'a', 90: 'b', 91: 'b', 7: None}, [[3, 90], [91, 7]], [[0, 1], [1, 255]]),
    ],
)
def test_values_become_class_ids(tmp_path, values, pixels, expected):
    path = saved(tmp_path / 'mask.png', np.array(pixels, np.uint8))
    label = loaded(path, values)
    assert label.dtype == np.uint8
    assert label.tolist() == expected


def test_values_beyond_eight_bits(tmp_path):
    path = saved(tmp_path / 'mask.png', np.array([[1000, 40000]], np.uint16))
    assert loaded(path, [1000, 40000]).tolist() == [[0, 1]]
    np.save(tmp_path / 'mask.npy', np.array([[-1, 70000]]))
    assert loaded(tmp_path / 'mask.npy', {-1: None, 70000: 'a'}).tolist() == [[255, 0]]


@pytest.mark.parametrize('mode', ['RGB', 'RGBA', 'P'])
def test_colors(tmp_path, mode):
    image = Image.fromarray(np.array([[BLACK, RED, BLUE]], np.uint8)).convert(mode)
    image.save(tmp_path / 'mask.png')
    values = {BLACK: 'background', RED: 'polyp', BLUE: None}
    assert loaded(tmp_path / 'mask.png', values).tolist() == [[0, 1, 255]]
    assert loaded(tmp_path / 'mask.png', [list(RED), list(BLUE), BLACK]).tolist() == [[2, 0, 1]]


def test_an_unlisted_value_names_file_and_value(tmp_path):
    path = saved(tmp_path / 'mask.png', np.array([[0, 255, 128, 128]], np.uint8))
    with pytest.raises(MaskValueError, match=r'mask\.png has 2 pixels .* 128\.'):
        loaded(path, POLYP)
    path = saved(tmp_path / 'colors.png', np.array([[BLUE, RED]], np.uint8))
    with pytest.raises(MaskValueError, match=r'colors\.png .*\(0, 0, 255\)'):
        loaded(path, [RED, BLACK])


@pytest.mark.parametrize(
    'values', [{0: 'a', '0': 'b'}, [0, RED], [], [1.5], ['red'], [[0, 0]], [[0, 0, 256]]]
)
def test_settings_without_a_meaning_are_refused(values):
    with pytest.raises(ValueError, match='mask_values'):
        MaskValues.parse(values)


def test_label_map_comes_after_and_reduce_zero_label_is_refused(tmp_path):
    path = saved(tmp_path / 'mask.png', np.array([[10, 20, 30]], np.uint8))
    values = {10: 'a', 20: 'b', 30: 'c'}
    assert loaded(path, values, label_map={0: 255, 1: 0, 2: 1}).tolist() == [[255, 0, 1]]
    with pytest.raises(ValueError, match='reduce_zero_label'):
        loaded(path, values, reduce_zero_label=True)
    plain = saved(tmp_path / 'plain.png', np.array([[0, 1, 255]] * 2, np.uint8))
    np.save(tmp_path / 'plain.npy', np.array([[0, 1, 255]] * 2, np.uint8))
    for file in (plain, tmp_path / 'plain.npy'):
        assert loaded(file, None, reduce_zero_label=True).tolist() == [[255, 0, 255]] * 2


def test_at_image_size(tmp_path):
    path = saved(tmp_path / 'mask.png', np.array([[0, 255], [255, 0]], np.uint8))
    step = LoadAnnotationsAtImageSize(mask_values=POLYP)
    info = dict(seg_map_path=str(path), reduce_zero_label=False, seg_fields=[])
    label = step(dict(info, img=np.zeros((4, 4, 3))))['gt_seg_map']
    assert label.tolist() == [[0, 0, 1, 1]] * 2 + [[1, 1, 0, 0]] * 2


def test_an_image_without_a_mask_stays_without():
    assert LoadMasks(mask_values=POLYP)(dict(img_path='a')) == dict(img_path='a')


def test_one_line_in_a_config_reaches_all_masks(tmp_path):
    base = 'mean_teacher/mean-teacher_deeplabv3plus_mobilenetv2_folder-512x512.py'
    folder = __file__.rsplit('/tests/', 1)[0] + '/configs/'
    (tmp_path / 'own.py').write_text(f'_base_ = {folder + base!r}\nmask_values = {POLYP}\n')
    cfg = resolve_config(Config.fromfile(tmp_path / 'own.py'))
    cfg.dump(tmp_path / 'written.py')
    cfg = Config.fromfile(tmp_path / 'written.py')
    datasets = [cfg.train_dataloader.dataset.datasets[0], cfg.val_dataloader.dataset]
    for dataset in (*datasets, cfg.test_dataloader.dataset):
        (step,) = [step for step in dataset.pipeline if step.type == 'mmdmt.LoadMasks']
        assert MaskValues.parse(step.mask_values).ids == {0: 0, 255: 1}


def test_a_stored_config_with_values_and_colors_is_read_and_allowed():
    for values in (POLYP, {BLACK: 'background', RED: 'polyp'}):
        step = dict(type='mmdmt.LoadMasks', mask_values=values)
        cfg = Config(dict(test_pipeline=[step]))
        read = read_stored_config(cfg.pretty_text)
        check_stored_config(read, 'a.pth')
        assert MaskValues.parse(read.test_pipeline[0].mask_values) == MaskValues.parse(values)
    with pytest.raises(UntrustedCheckpointError, match='key'):
        check_stored_config(Config(dict(test_pipeline=[{('a', 0, 0): 'x'}])), 'a.pth')
