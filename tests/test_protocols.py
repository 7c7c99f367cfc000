"""Evaluation protocols: what each of them changes, and what padding and scaling do to scores."""

import copy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.structures import PixelData
from mmseg.evaluation import IoUMetric
from mmseg.structures import SegDataSample
from PIL import Image
from tiny_models import tiny_segmentor
from torch import nn

import mmdmt  # noqa: F401
from mmdmt.config import resolve_config
from mmdmt.engine.mutual import StageConfigBuilder
from mmdmt.protocols import PROTOCOLS, apply_protocol
from mmdmt.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'
DATASET_OF = {
    'PascalVOCDataset': 'deeplabv3plus_r50_pascal_voc12-321x321.py',
    'CityscapesDataset': 'deeplabv3plus_r50_cityscapes-801x801.py',
    'ADE20KDataset': 'deeplabv3plus_r50_ade20k-512x512.py',
}


def config(name, **settings):
    file = DATASET_OF[PROTOCOLS[name].dataset]
    cfg = Config.fromfile(CONFIGS / 'supervised' / file)
    cfg.merge_from_dict(dict(evaluation_protocol=name, **settings))
    return cfg


def types(pipeline):
    return [step['type'].split('.')[-1] for step in pipeline]


class PaddingBlind(nn.Module):
    """A network that sees one pixel at a time: what is beside an image cannot change it."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        return (self.conv(x),)


def pixelwise_model(preprocessor_settings):
    cfg = tiny_segmentor()
    cfg['data_preprocessor'].update(preprocessor_settings)
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(ConfigDict(cfg)).eval()
    torch.manual_seed(3)
    model.backbone = PaddingBlind()
    model.decode_head.forward = lambda features: features[0]
    return model


def score(model, pipeline, files, num_classes=4):
    """mIoU over files with a pipeline, as mmseg's test loop takes it."""
    metric = IoUMetric(iou_metrics=['mIoU'])
    metric.dataset_meta = dict(classes=tuple('abcd'[:num_classes]))
    with DefaultScope.overwrite_default_scope('mmseg'):
        steps = Compose(copy.deepcopy(pipeline))
        sizes = []
        for image, mask in files:
            info = dict(img_path=image, seg_map_path=mask, seg_fields=[], reduce_zero_label=False)
            batch = steps(info)
            data = model.data_preprocessor(
                dict(inputs=[batch['inputs']], data_samples=[batch['data_samples']]), False
            )
            with torch.no_grad():
                samples = model.predict(data['inputs'], data['data_samples'])
            sizes.append((tuple(data['inputs'].shape[-2:]), samples[0].gt_sem_seg.shape))
            metric.process({}, [sample.to_dict() for sample in samples])
    return metric.evaluate(len(files))['mIoU'], sizes


@pytest.fixture
def files(tmp_path):
    """Three images and masks of different sizes, all below 60x100, with ignored pixels."""
    rng = np.random.default_rng(0)
    written = []
    for index, (height, width) in enumerate([(40, 60), (50, 37), (48, 100)]):
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        mask = rng.integers(0, 4, (height, width), np.uint8)
        mask[:3] = 255
        paths = tmp_path / f'{index}.png', tmp_path / f'{index}_mask.png'
        Image.fromarray(image).save(paths[0])
        Image.fromarray(mask).save(paths[1])
        written.append(tuple(map(str, paths)))
    return written


@pytest.mark.parametrize('name', sorted(PROTOCOLS))
def test_a_protocol_is_one_line_and_applying_it_again_changes_nothing(name):
    cfg = resolve_config(config(name))
    once = cfg.to_dict()
    assert 'evaluation_protocol' not in cfg
    for section in ('val_dataloader', 'test_dataloader'):
        assert cfg[section].dataset.pipeline == PROTOCOLS[name].pipeline()
    assert resolve_config(cfg).to_dict() == once
    untouched = resolve_config(
        Config.fromfile(CONFIGS / 'supervised' / DATASET_OF[PROTOCOLS[name].dataset])
    )
    assert cfg.train_dataloader == untouched.train_dataloader
    # mmseg's inferencers know these transforms, and only these.
    assert set(types(cfg.test_pipeline)) <= {
        'LoadImageFromFile',
        'Resize',
        'LoadAnnotations',
        'PackSegInputs',
    }


def test_padding_comes_and_goes_with_its_protocol():
    cfg = resolve_config(config('pascal_voc12_padded'))
    assert cfg.model.data_preprocessor.test_cfg == dict(size=(505, 505))
    cfg.evaluation_protocol = 'pascal_voc12_whole'
    assert 'test_cfg' not in resolve_config(cfg).model.data_preprocessor


def test_the_color_of_padding_is_one_setting_of_training_and_evaluation(files):
    cfg = resolve_config(config('pascal_voc12_padded', padding='black'))
    assert cfg.model.data_preprocessor.padding == 'black' and 'padding' not in cfg
    settings = dict(cfg.model.data_preprocessor, type='mmdmt.PaddingPreprocessor')
    settings['test_cfg'] = dict(size=(64, 128))
    seen = []
    model = pixelwise_model(settings)
    model.backbone.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    score(model, PROTOCOLS['pascal_voc12_padded'].pipeline(), files[:1])
    black = -model.data_preprocessor.mean / model.data_preprocessor.std
    assert seen[0].shape[2:] == (64, 128)
    assert (seen[0][0, :, 40:] == black).all() and (seen[0][0, :, :, 60:] == black).all()


def test_windows_have_the_size_of_the_crop_that_is_trained():
    cfg = resolve_config(config('cityscapes_sliding', crop_size=[600, 300]))
    assert cfg.model.test_cfg == dict(mode='slide', crop_size=(600, 300), stride=(400, 200))
    cfg.evaluation_protocol = 'cityscapes_half'
    assert resolve_config(cfg).model.test_cfg == dict(mode='whole')
    cfg.evaluation_protocol = 'cityscapes_sliding'
    cfg.train_dataloader.dataset.datasets[0].pipeline = []
    with pytest.raises(ValueError, match='RandomCrop in the training pipeline, which has none'):
        apply_protocol(cfg)


def test_an_online_method_evaluates_by_a_protocol_too():
    cfg = Config.fromfile(
        CONFIGS / 'mean_teacher' / 'mean-teacher_deeplabv3plus_r50_pascal_voc12-321x321.py'
    )
    cfg.evaluation_protocol = 'pascal_voc12_padded'
    resolve_config(cfg)
    assert cfg.model.segmentor.data_preprocessor.test_cfg.size == (505, 505)
    assert cfg.model.segmentor.test_cfg.mode == 'whole'
    assert 'test_cfg' not in cfg.model


def test_members_of_mutual_training_with_other_networks_share_protocol_and_padding():
    name = 'dmt_deeplabv3plus-segformer_r50-mit-b1_1_8_pascal_voc12-321x321.py'
    cfg = Config.fromfile(CONFIGS / 'dmt' / name)
    cfg.merge_from_dict(dict(evaluation_protocol='pascal_voc12_padded', padding='black'))
    builder = StageConfigBuilder(resolve_config(cfg))
    for member in ('deeplab', 'segformer'):
        stage = builder.build(builder.plan.find(f'1.{member}'), '/w', teacher_checkpoint='/t.pth')
        for model in (stage.model, stage.default_hooks.pseudo_labels.labeler.model):
            assert model.data_preprocessor.test_cfg == dict(size=(505, 505))
            assert model.data_preprocessor.padding == 'black'


def test_unknown_names_and_other_datasets_are_refused():
    with pytest.raises(ValueError, match=r"'voc' is unknown; known:.*pascal_voc12_padded"):
        cfg = config('pascal_voc12_padded')
        cfg.evaluation_protocol = 'voc'
        resolve_config(cfg)
    cfg.evaluation_protocol = 'cityscapes_half'
    with pytest.raises(ValueError, match=r"has PascalVOCDataset; for that.*'pascal_voc12"):
        resolve_config(cfg)


def test_padding_does_not_change_the_score_of_a_network_that_does_not_see_it(files):
    padded, whole = PROTOCOLS['pascal_voc12_padded'], PROTOCOLS['pascal_voc12_whole']
    score_whole, _ = score(pixelwise_model({}), whole.pipeline(), files)
    model = pixelwise_model(dict(test_cfg=dict(size=padded.pad_to)))
    score_padded, sizes = score(model, padded.pipeline(), files)
    assert score_padded == score_whole > 0
    assert [size for size, _ in sizes] == [(505, 505)] * 3
    assert [label for _, label in sizes] == [(40, 60), (50, 37), (48, 100)]


def small(name, scale):
    """A protocol of Cityscapes with a scale for test images."""
    pipeline = PROTOCOLS[name].pipeline()
    for step in pipeline:
        if 'scale' in step:
            step['scale'] = scale
    return pipeline


def test_labels_are_scaled_in_the_half_size_protocol_alone(files):
    model = pixelwise_model({})
    sizes = {
        name: score(model, small(name, (30, 20)), files[:1])[1][0]
        for name in ('cityscapes_half', 'cityscapes_half_input', 'cityscapes_whole')
    }
    assert sizes == {
        'cityscapes_half': ((20, 30), (20, 30)),
        'cityscapes_half_input': ((20, 30), (40, 60)),
        'cityscapes_whole': ((40, 60), (40, 60)),
    }


def test_the_half_size_score_is_that_of_scaled_files(files, tmp_path):
    """Labels by nearest neighbor, predictions not scaled back: as if the files were small."""
    image, mask = Image.open(files[0][0]), np.asarray(Image.open(files[0][1]))
    reduced = cv2.resize(np.asarray(image), (30, 20), interpolation=cv2.INTER_LINEAR)
    paths = str(tmp_path / 'half.png'), str(tmp_path / 'half_mask.png')
    Image.fromarray(reduced).save(paths[0])
    Image.fromarray(mask[::2, ::2]).save(paths[1])
    model = pixelwise_model({})
    expected, _ = score(model, PROTOCOLS['cityscapes_whole'].pipeline(), [paths])
    found, _ = score(model, small('cityscapes_half', (30, 20)), files[:1])
    assert found == expected


def test_the_score_of_ade20k_is_taken_at_the_size_of_the_labels(files):
    _, sizes = score(pixelwise_model({}), PROTOCOLS['ade20k'].pipeline(), files[:1])
    assert sizes == [((512, 768), (40, 60))]


def test_prediction_of_a_padded_image_is_that_of_the_image_alone(files):
    """The padding is cut off before the prediction is compared, pixel by pixel."""
    model = pixelwise_model(dict(test_cfg=dict(size=(64, 128))))
    image = torch.randint(0, 256, (3, 20, 30), dtype=torch.uint8)
    sample = SegDataSample(metainfo=dict(ori_shape=(20, 30), img_shape=(20, 30)))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 20, 30, dtype=torch.long))
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]), False)
    assert tuple(data['inputs'].shape) == (1, 3, 64, 128)
    with torch.no_grad():
        logits = model.predict(data['inputs'], data['data_samples'])[0].seg_logits.data
        expected = model.backbone(data['inputs'][..., :20, :30])[0][0]
    torch.testing.assert_close(logits, expected)
