import numpy as np
import pytest
import torch
from mmcv.transforms import Compose
from mmengine.registry import init_default_scope

from mmdmt.datasets import LoadPseudoLabels, PackSemiInputs
from mmdmt.pseudo import PseudoLabelStore

H, W = 24, 32


@pytest.fixture(autouse=True)
def scope():
    init_default_scope('mmseg')


class Store:
    """Stands for a pseudo-label store."""

    def __init__(self, root):
        self.root = root

    def get_thresholded(self, name):
        label = np.arange(H * W, dtype=np.int64).reshape(H, W)
        confidence = (label % 256).astype(np.float32) / 255
        return (label % 7).astype(np.uint8), confidence


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setattr('mmdmt.datasets.transforms.load_pseudo_labels.PseudoLabelStore', Store)


def image_of_positions():
    """An image whose pixels hold their position, so that maps can be compared to it."""
    position = np.arange(H * W)
    planes = [position % 7, position % 256, position // 256]
    return np.stack(planes, axis=-1).reshape(H, W, 3).astype(np.uint8)


def sample(**kwargs):
    return dict(
        dict(
            img=image_of_positions(),
            img_path='x.jpg',
            name='x',
            ori_shape=(H, W),
            img_shape=(H, W),
            seg_fields=[],
        ),
        **kwargs,
    )


def test_unlabeled_samples_have_no_label():
    packed = PackSemiInputs()(sample())
    assert packed['inputs'].dtype == torch.uint8
    assert packed['inputs'].shape == (3, H, W)
    assert 'gt_sem_seg' not in packed['data_samples']
    assert 'is_pseudo' not in packed['data_samples'].metainfo
    assert packed['data_samples'].name == 'x'


def test_labeled_samples_have_no_confidence():
    packed = PackSemiInputs()(sample(gt_seg_map=np.ones((H, W), np.uint8)))['data_samples']
    assert packed.gt_sem_seg.data.shape == (1, H, W)
    assert packed.gt_sem_seg.data.dtype == torch.int64
    assert 'pseudo_confidence' not in packed
    assert 'is_pseudo' not in packed.metainfo


@pytest.mark.parametrize('key', ['gt_seg_map', 'pseudo_confidence'])
def test_maps_of_another_size_are_refused(key):
    with pytest.raises(ValueError, match=rf'`{key}` of x.jpg .*\(3, 3\).*\(24, 32\)'):
        PackSemiInputs()(sample(**{key: np.zeros((3, 3), np.uint8)}))


def test_pseudo_labels_are_loaded_with_their_confidence_in_full_precision(store):
    results = LoadPseudoLabels('somewhere')(sample())
    assert results['seg_fields'] == ['gt_seg_map', 'pseudo_confidence']
    assert results['gt_seg_map'].dtype == np.uint8
    assert results['pseudo_confidence'].dtype == np.float32
    assert np.array_equal(results['pseudo_confidence'], results['img'][..., 1] / np.float32(255))
    assert np.array_equal(results['gt_seg_map'], results['img'][..., 0])


def test_pseudo_labels_are_not_learned_where_nothing_was_measured(store):
    nodata = (np.arange(H * W).reshape(H, W) % 5 == 0).astype(np.uint8)
    results = LoadPseudoLabels('somewhere')(sample(nodata_map=nodata, seg_fields=['nodata_map']))
    label, confidence = results['gt_seg_map'], results['pseudo_confidence']
    assert np.array_equal(label, np.where(nodata, 255, results['img'][..., 0]))
    assert not confidence[nodata > 0].any() and confidence[nodata == 0].any()
    assert (label.dtype, confidence.dtype) == (np.uint8, np.float32)
    packed = PackSemiInputs()(results)['data_samples']
    assert np.array_equal(packed.measured.data[0].numpy(), nodata == 0)


@pytest.mark.parametrize('seed', range(6))
def test_geometry_carries_label_and_confidence_with_the_image(store, seed):
    pipeline = Compose(
        [
            dict(type='mmdmt.LoadPseudoLabels', store_dir='somewhere'),
            dict(
                type='RandomResize',
                scale=(W, H),
                ratio_range=(0.5, 2.0),
                keep_ratio=True,
                interpolation='nearest',
            ),
            dict(type='RandomCrop', crop_size=(11, 13)),
            dict(type='RandomFlip', prob=0.5),
            dict(type='mmdmt.PackSemiInputs'),
        ]
    )
    np.random.seed(seed)
    packed = pipeline(sample())
    image, data = packed['inputs'], packed['data_samples']
    assert data.is_pseudo
    assert data.pseudo_confidence.data.dtype == torch.float32
    assert torch.equal(data.pseudo_confidence.data[0], image[1] / 255)
    assert torch.equal(data.gt_sem_seg.data[0], image[0].long())


def test_pseudo_labels_of_another_size_are_refused(store):
    small = sample(img=np.zeros((3, 4, 3), np.uint8))
    with pytest.raises(ValueError, match=r'pseudo-label of x .*\(24, 32\).*\(3, 4\)'):
        LoadPseudoLabels('somewhere')(small)


def test_pseudo_labels_need_a_name(store):
    results = sample()
    results.pop('name')
    with pytest.raises(KeyError, match='UnlabeledDataset'):
        LoadPseudoLabels('somewhere')(results)


def test_a_pipeline_with_pseudo_labels_prints_its_store():
    assert "store_dir='somewhere'" in repr(LoadPseudoLabels('somewhere'))


def test_reads_a_real_store_that_was_filled_after_the_pipeline_was_built(tmp_path):
    transform = LoadPseudoLabels(str(tmp_path))
    store = PseudoLabelStore(str(tmp_path))
    label = np.arange(H * W).reshape(H, W).astype(np.uint8) % 3
    confidence = np.linspace(0, 1, H * W, dtype=np.float32).reshape(H, W)
    store.begin(dict(num_classes=3))
    store.put('city/x', label, confidence)
    store.finish(['city/x'], np.full(3, 0.5))
    results = transform(sample(name='city/x'))
    kept = results['gt_seg_map'] != 255
    assert np.array_equal(results['gt_seg_map'][kept], label[kept])
    assert results['pseudo_confidence'][kept].min() >= 0.5
    assert np.allclose(results['pseudo_confidence'], confidence, atol=0.01)
