import numpy as np
import pytest
from PIL import Image
from tiny_data_tree import LABELED, VALIDATION, DataTree

from mmdmt.datasets.checks.validation import check_dataset

CLASSES = ('background', 'polyp')
COLORS = np.array([[0, 0, 0], [255, 0, 0]], np.uint8)


@pytest.fixture
def tree(tmp_path):
    return DataTree(tmp_path)


def write_masks(tree, values):
    """Masks whose values are taken from ``values`` (C,) or (C, 3)."""
    rng = np.random.default_rng(0)
    for name in LABELED + VALIDATION:
        tree.write_mask(name, np.asarray(values)[rng.integers(0, len(values), (40, 48))])


def check(tree, mask_values=None, classes=CLASSES, num_classes=None, **settings):
    pipeline = [dict(type='mmcv.LoadImageFromFile')]
    pipeline.append(dict(type='mmdmt.LoadMasks', mask_values=mask_values))
    settings.update(metainfo=dict(classes=classes), pipeline=pipeline)
    parts = [tree.config(kind, **settings) for kind in ('labeled', 'val')]
    return check_dataset(*parts, num_classes=num_classes, progress=False)


def test_masks_of_0_and_255_stop_with_the_line_to_write(tree):
    write_masks(tree, np.array([0, 255], np.uint8))
    problems = check(tree)
    assert [problem.kind for problem in problems] == ['mask values'] * 2  # training, validation
    assert 'all 3 masks have the values 0 and 255 alone' in problems[0].found
    assert "`mask_values = {0: 'background', 255: 'polyp'}`" in problems[0].fix
    assert check(tree, {0: 'background', 255: 'polyp'}) == []
    assert check(tree, [0, 255]) == []


def test_sparse_ids_and_colors_get_their_line(tree):
    write_masks(tree, np.array([3, 200], np.uint8))
    problems = check(tree)
    assert {problem.kind for problem in problems} == {'label id'}
    assert "`mask_values = {3: 'background', 200: 'polyp'}`" in problems[0].fix
    write_masks(tree, COLORS)
    problems = check(tree)
    assert {problem.kind for problem in problems} == {'mask mode'}
    line = "{(0, 0, 0): 'background', (255, 0, 0): 'polyp'}"
    assert f'`mask_values = {line}`' in problems[0].fix
    assert check(tree, {(0, 0, 0): 'background', (255, 0, 0): 'polyp'}) == []


def test_a_picture_in_place_of_a_mask(tree):
    rng = np.random.default_rng(0)
    write_masks(tree, rng.integers(0, 256, (900, 3), np.uint8))
    assert 'more than 512 colors' in check(tree)[0].fix


def test_an_unlisted_value_is_found_before_training(tree):
    write_masks(tree, COLORS)
    tree.write_mask('a', np.full((40, 48, 3), 7, np.uint8))
    (problem,) = check(tree, COLORS.tolist())
    assert problem.kind == 'label id'
    assert f'{tree.mask("a")} has values that `mask_values` does not list: (7, 7, 7)' in (
        problem.found
    )


def test_names_and_shift_that_contradict(tree):
    write_masks(tree, np.array([0, 255], np.uint8))
    swapped = check(tree, {0: 'polyp', 255: 'background'})
    assert "names class 0 'polyp', which is 'background'" in swapped[0].found
    shifted = check(tree, {0: 'background', 255: 'polyp'}, reduce_zero_label=True)
    assert 'reduce_zero_label' in next(p for p in shifted if p.kind == 'mask values').found


def test_npy_masks(tree):
    for name in LABELED + VALIDATION:
        np.save(tree.mask(name).with_suffix('.npy'), np.full((40, 48), 9))
    assert check(tree, {9: 'background', 8: 'polyp'}, seg_map_suffix='.npy') == []
    found = check(tree, seg_map_suffix='.npy')
    assert 'ids 9' in found[0].found


def test_a_head_of_another_number_of_classes(tree):
    write_masks(tree, np.array([0, 1], np.uint8))
    (problem,) = check(tree, num_classes=3)
    assert problem.kind == 'number of classes'
    assert 'num_classes` is 3, but the dataset has 2 classes: background, polyp' in problem.found


def test_palette_images_keep_their_indices_without_mask_values(tree):
    for name in LABELED + VALIDATION:
        image = Image.fromarray(np.eye(40, 48, dtype=np.uint8)).convert('P')
        image.putdata(np.eye(40, 48, dtype=np.uint8).ravel().tolist())
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.save(tree.mask(name))
    assert check(tree) == []
    assert check(tree, COLORS.tolist()) == []
