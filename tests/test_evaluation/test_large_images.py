import numpy as np
import pytest
import rasterio
import torch
from mmengine.config import ConfigDict
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from PIL import Image
from tiny_bands import MEAN, STD, write_geotiff
from tiny_models import tiny_segmentor

from mmdmt.evaluation.large_images import predict_large
from mmdmt.models.methods.networks import build_segmentor
from mmdmt.pseudo.prediction import predict_probabilities

BANDS = dict(type='mmdmt.LoadBands')


def four_bands():
    torch.manual_seed(0)
    cfg = tiny_segmentor(num_classes=3)
    cfg['backbone']['in_channels'] = 4
    cfg['data_preprocessor'] = dict(
        type='mmdmt.PaddingPreprocessor', size=(32, 32), mean=MEAN, std=STD
    )
    model = build_segmentor(cfg).eval()
    model.init_weights()
    return model


def scene(height=100, width=130, bands=4):
    rng = np.random.default_rng(0)
    small = rng.random((height // 10, width // 10, bands)) * 8000
    image = small.repeat(10, 0).repeat(10, 1) + rng.normal(0, 300, (height, width, bands))
    return image.clip(1, 9999).astype(np.uint16)


def whole(model, image):
    """Probabilities (C, H, W) of one pass over the whole image."""
    meta = dict(ori_shape=image.shape[:2], img_shape=image.shape[:2], pad_shape=image.shape[:2])
    tensor = torch.from_numpy(image.astype(np.float32).transpose(2, 0, 1))
    batch = dict(inputs=[tensor], data_samples=[SegDataSample(metainfo=meta)])
    with torch.no_grad():
        return predict_probabilities(model, batch)[0].numpy()


class OfPixel(BaseSegmentor):
    """Its probabilities depend on the pixel alone, so that windows make no difference."""

    def __init__(self, cfg):
        super().__init__(data_preprocessor=four_bands().data_preprocessor)
        self.num_classes = self.out_channels = 4
        self.align_corners = False
        self.sizes = []

    def predict(self, inputs, data_samples=None):
        self.sizes.append(tuple(inputs.shape))
        return self.postprocess_result(inputs, data_samples)

    def _forward(self, inputs, data_samples=None): ...

    def encode_decode(self, inputs, batch_data_samples): ...

    def extract_feat(self, inputs): ...

    def loss(self, inputs, data_samples): ...


@pytest.mark.parametrize('suffix', ['.tif', '.npy', '.png'])
@pytest.mark.parametrize('window', [32, (40, 48), 999])
def test_windows_join_without_a_gap(tmp_path, suffix, window):
    image = scene()
    path = write_geotiff(tmp_path / 'scene.tif', image)
    out, sure = tmp_path / f'out{suffix}', tmp_path / 'sure.npy'
    seen = []
    facts = predict_large(
        OfPixel(None),
        str(path),
        str(out),
        window,
        load=BANDS,
        confidence_path=str(sure),
        progress=lambda *numbers: seen.append(numbers),
    )
    if suffix == '.tif':
        with rasterio.open(out) as file:
            label = file.read(1)
    else:
        label = np.load(out) if suffix == '.npy' else np.asarray(Image.open(out))
    assert np.array_equal(label, image.argmax(2))
    logits = torch.from_numpy((image.astype(np.float32) - MEAN) / STD)
    np.testing.assert_allclose(np.load(sure), logits.softmax(2).amax(2), atol=1e-5)
    assert facts['pixels'] == {index: int((label == index).sum()) for index in range(4)}
    assert seen[-1] == (facts['windows'], facts['windows'])
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ['scene.tif', out.name, 'sure.npy']
    )


def test_georeference_and_nodata_go_through(tmp_path):
    image = scene()
    image[:30] = 0
    image[40, 40, 1] = 0  # one band alone is missing
    path = write_geotiff(tmp_path / 'scene.tif', image, nodata=0)
    predict_large(four_bands(), str(path), str(tmp_path / 'out.tif'), 32, load=BANDS)
    with rasterio.open(path) as source, rasterio.open(tmp_path / 'out.tif') as result:
        assert (result.crs, result.transform) == (source.crs, source.transform)
        assert (result.nodata, result.dtypes) == (255, ('uint8',))
        label = result.read(1)
    assert (label[:30] == 255).all()
    assert (label[30:] < 3).all()


def test_only_a_window_is_on_the_device_and_a_strip_on_disk(tmp_path, monkeypatch):
    model = OfPixel(None)
    shapes = []
    made = np.memmap

    def spied(*args, **options):
        shapes.append(options.get('shape'))
        return made(*args, **options)

    monkeypatch.setattr('mmdmt.evaluation.large_images.np.memmap', spied)
    path = write_geotiff(tmp_path / 'scene.tif', scene(300, 200))
    predict_large(model, str(path), str(tmp_path / 'out.tif'), 32, load=BANDS)
    assert set(model.sizes) == {(1, 4, 32, 32)}
    assert [shape for shape in shapes if shape and len(shape) == 3] == [(4, 32, 200)]


def test_linear_weights_come_closer_to_one_pass_than_the_mean(tmp_path):
    model, image = four_bands(), scene()
    path = write_geotiff(tmp_path / 'scene.tif', image)
    expected = whole(model, image).max(0)
    errors = {}
    for blend in ('linear', 'mean'):
        out, sure = str(tmp_path / 'out.npy'), str(tmp_path / 'sure.npy')
        predict_large(model, str(path), out, 48, 0.5, blend=blend, load=BANDS, confidence_path=sure)
        errors[blend] = np.abs(np.load(sure) - expected).mean()
    assert errors['linear'] < 0.95 * errors['mean']


def test_color_images_are_read_as_the_pipeline_of_the_model_reads_them(tmp_path):
    torch.manual_seed(0)
    model = build_segmentor(tiny_segmentor(num_classes=3)).eval()
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    Image.fromarray(image).save(tmp_path / 'a.png')
    expected = whole(model, image[..., ::-1]).argmax(0)  # mmcv loads BGR
    for cfg in (None, dict(test_pipeline=[dict(type='LoadImageFromFile')])):
        model.cfg = cfg and ConfigDict(cfg)
        predict_large(model, str(tmp_path / 'a.png'), str(tmp_path / 'out.npy'), 64)
        assert np.array_equal(np.load(tmp_path / 'out.npy'), expected)


def test_a_color_that_is_nodata_in_one_band_stays_as_the_pipeline_loads_it(tmp_path):
    torch.manual_seed(0)
    model = build_segmentor(tiny_segmentor(num_classes=3)).eval()
    image = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8)
    image[10:30, 10:30, 0] = 255
    image[0, 0] = 255
    path = write_geotiff(tmp_path / 'a.tif', image, nodata=255)
    out, sure = (str(tmp_path / name) for name in ('out.npy', 'sure.npy'))
    predict_large(model, str(path), out, 64, confidence_path=sure)
    expected = whole(model, image[..., ::-1])
    label = expected.argmax(0)
    label[0, 0] = 255
    assert np.array_equal(np.load(out), label)
    np.testing.assert_allclose(np.load(sure)[1:], expected.max(0)[1:], atol=1e-6)


def test_bad_settings(tmp_path):
    path = str(write_geotiff(tmp_path / 'a.tif', scene(40, 40)))
    model = four_bands()
    for settings, message in (
        (dict(blend='max'), 'blend'),
        (dict(overlap=1.0), 'overlap'),
        (dict(window=0), 'window'),
        (dict(confidence_path=str(tmp_path / 'c.png')), 'confidence|c.png'),
    ):
        with pytest.raises(ValueError, match=message):
            predict_large(model, path, str(tmp_path / 'o.tif'), **{'load': BANDS, **settings})
    with pytest.raises(ValueError, match=r'o\.jpg: this is written as'):
        predict_large(model, path, str(tmp_path / 'o.jpg'), load=BANDS)
    assert [each.name for each in tmp_path.iterdir()] == ['a.tif']
