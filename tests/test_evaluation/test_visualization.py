import numpy as np
import pytest
import torch
from PIL import Image

from mmdmt.evaluation.visualization import (
    class_legend,
    colorize_label,
    confidence_heatmap,
    overlay_label,
    save_image,
    stack_sheets,
    tile_images,
    to_uint8_image,
)

PALETTE = [[10, 20, 30], [200, 0, 0]]


def solid(height, width, color):
    return np.full((height, width, 3), color, dtype=np.uint8)


@pytest.mark.parametrize('dtype', [np.uint8, np.int64])
def test_colorize_label(dtype):
    colors = colorize_label(np.array([[0, 1], [255, 2]], dtype=dtype), PALETTE)
    assert colors.dtype == np.uint8
    assert colors.tolist() == [[[10, 20, 30], [200, 0, 0]], [[255] * 3, [255] * 3]]


def test_colorize_label_refuses_other_arrays():
    with pytest.raises(ValueError, match='must be integers'):
        colorize_label(np.zeros((2, 2)), PALETTE)
    with pytest.raises(ValueError, match='must be integers'):
        colorize_label(np.zeros((1, 2, 2), np.uint8), PALETTE)


def test_overlay_leaves_ignored_pixels():
    image = solid(1, 2, 100)
    out = overlay_label(image, np.array([[1, 255]], np.uint8), PALETTE, alpha=0.5)
    assert out.tolist() == [[[150, 50, 50], [100, 100, 100]]]
    with pytest.raises(ValueError, match='differ in size'):
        overlay_label(image, np.zeros((2, 2), np.uint8), PALETTE)


def test_confidence_heatmap_gets_brighter_and_takes_quantized_maps():
    ramp = np.linspace(0, 1, 256)[None]
    colors = confidence_heatmap(ramp)
    brightness = colors.astype(int).sum(-1)[0]
    assert brightness[-1] > brightness[128] > brightness[0]
    assert colors[0, 0, 2] > colors[0, 0, 1], 'low confidence is dark blue: RGB, not BGR'
    quantized = np.arange(256, dtype=np.uint8)[None]
    assert np.array_equal(confidence_heatmap(quantized), colors)
    masked = confidence_heatmap(ramp, valid=ramp > 0.5)
    assert (masked[0, :128] == 255).all() and not (masked[0, 128:] == 255).all()


def test_to_uint8_image():
    tensor = torch.zeros(3, 2, 4)
    tensor[0] = 2.0
    tensor[1] = 0.5
    assert to_uint8_image(tensor).tolist() == [[[255, 128, 0]] * 4] * 2


def test_tile_images_places_every_image():
    red, blue = solid(20, 30, (255, 0, 0)), solid(10, 30, (0, 0, 255))
    sheet = tile_images([[red, None, blue], [blue]], ['a', 'b', 'c'], ['first', 'second'])
    assert sheet.dtype == np.uint8
    assert (sheet == (255, 0, 0)).all(-1).sum() == 600
    assert (sheet == (0, 0, 255)).all(-1).sum() == 600
    left_of_red = np.argwhere((sheet == (255, 0, 0)).all(-1)).min(0)
    places = np.argwhere((sheet == (0, 0, 255)).all(-1))
    assert places[0][0] == left_of_red[0], 'same row'
    assert places[0][1] > left_of_red[1] + 60, 'third column'
    assert (sheet == 0).all(-1).any(), 'titles are drawn in black'


def test_tile_images_scales_down_to_the_cell_and_never_up():
    red, blue = solid(40, 40, (255, 0, 0)), solid(5, 5, (0, 0, 255))
    sheet = tile_images([[red, blue]], cell_size=(10, 20))
    assert (sheet == (255, 0, 0)).all(-1).sum() == 100
    assert (sheet == (0, 0, 255)).all(-1).sum() == 25
    assert tile_images([[blue, blue]], cell_size=(90, 80)).shape == tile_images([[blue] * 2]).shape


def test_tile_images_refuses_nothing_to_draw():
    with pytest.raises(ValueError, match='at least one'):
        tile_images([[None]])
    with pytest.raises(ValueError, match='row titles'):
        tile_images([[solid(2, 2, 0)]], row_titles=['a', 'b'])


def test_long_titles_do_not_run_into_the_next_column():
    narrow = solid(10, 40, 128)
    short = tile_images([[narrow, narrow]], ['', 'x'])
    long = tile_images([[narrow, narrow]], ['a very long title indeed', 'x'])
    second = 4 + 40 + 4
    assert np.array_equal(short[:20, second:], long[:20, second:])


def test_class_legend_shows_every_color_and_wraps():
    wide = class_legend(['sky', 'road'], PALETTE, width=400)
    narrow = class_legend(['sky', 'road'], PALETTE, width=60)
    assert wide.shape[1] == 400 and narrow.shape[0] > wide.shape[0]
    for color in PALETTE:
        assert (narrow == color).all(-1).any()


def test_stack_sheets_pads_with_white():
    out = stack_sheets([solid(2, 5, 9), solid(3, 2, 7)])
    assert out.shape == (5, 5, 3)
    assert (out[2:, 2:] == 255).all() and (out[2:, :2] == 7).all()


def test_save_image_creates_the_folder(tmp_path):
    image = solid(3, 4, (1, 2, 3))
    path = save_image(tmp_path / 'a' / 'b.png', image)
    assert np.array_equal(np.asarray(Image.open(path)), image)


@pytest.mark.parametrize('bands', [1, 2, 4, 13])
def test_images_of_other_bands_have_a_picture(bands):
    image = torch.rand(bands, 5, 6)
    picture = to_uint8_image(image)
    assert picture.shape == (5, 6, 3)
    shown = image[:3] if bands > 3 else image[[0, 0, 0]]
    assert np.array_equal(picture, to_uint8_image(shown))
