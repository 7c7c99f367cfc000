"""Published protocols run from files to metrics, with small images and a small network."""

import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config, ConfigDict
from mmengine.registry import RUNNERS
from mmseg.models.segmentors import EncoderDecoder
from PIL import Image
from tiny_models import tiny_segmentor

from mmdmt.pseudo import PseudoLabelStore

CONFIGS = Path(__file__).resolve().parents[2] / 'configs' / 'dmt'


@pytest.fixture(autouse=True)
def unformatted_configs(monkeypatch):
    """Configs are written in one line: formatting them takes seconds for each stage."""
    for module in ('yapf.yapflib.yapf_api', 'mmengine.config.config'):  # by version
        monkeypatch.setattr(
            f'{module}.FormatCode', lambda text, **kwargs: (text, False), raising=False
        )


def write_images(root, rng, image, mask, size=(64, 128)):
    """An image of two halves and its mask; below ``root``."""
    label = np.zeros(size, np.uint8)
    label[:, size[1] // 2 :] = 1
    pixels = (label[..., None] * 120 + rng.integers(0, 80, (*size, 3))).astype(np.uint8)
    for path, content in ((image, pixels), (mask, label)):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(content).save(root / path)


def make_cityscapes(root):
    rng = np.random.default_rng(0)
    names = [f'bonn/{index}' for index in range(6)]
    for split, stems in (('train', names), ('val', ['ulm/0', 'ulm/1'])):
        for stem in stems:
            image = f'leftImg8bit/{split}/{stem}_leftImg8bit.png'
            write_images(root, rng, image, f'gtFine/{split}/{stem}_gtFine_labelTrainIds.png')
    return names


def make_voc(root):
    rng = np.random.default_rng(0)
    names = [str(index) for index in range(6)]
    for index, stem in enumerate([*names, 'v']):
        folder = 'SegmentationClass' if stem == 'v' else 'SegmentationClassAug'
        size = (40 + 2 * index, 60)
        write_images(root, rng, f'JPEGImages/{stem}.jpg', f'{folder}/{stem}.png', size)
    (root / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    (root / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('v\n')
    return names


def shrink(cfg, root, work_dir, names, num_classes, ratios=(0.5,)):
    """Data of ``root``, a tiny network, stages of one step, and nothing to fetch."""
    lists = root / 'splits'
    lists.mkdir()
    (lists / 'labeled.txt').write_text('\n'.join(names[:3]) + '\n')
    (lists / 'unlabeled.txt').write_text('\n'.join(names[3:]) + '\n')
    model = tiny_segmentor(num_classes=num_classes)
    model['data_preprocessor'] = cfg.model.data_preprocessor.to_dict()
    cfg.model = ConfigDict(model)
    members = cfg.mutual.members
    for member in members:
        member.pop('load_from', None)
        for part in (member.get('cfg_options') or {}).get('model', {}).values():
            part.pop('init_cfg', None)
    cfg.merge_from_dict(
        dict(
            data_root=str(root),
            labeled_list='splits/labeled.txt',
            unlabeled_list='splits/unlabeled.txt',
            work_dir=str(work_dir),
        )
    )
    cfg.mutual.supervised.max_iters = cfg.mutual.round.max_iters = 1
    cfg.mutual.ratios = list(ratios)
    cfg.mutual.labeling = dict(cfg.mutual.get('labeling', {}), num_workers=0, pixel_stride=1)
    for section in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        cfg[section].update(num_workers=0, persistent_workers=False)
    return cfg


def run(cfg, work_dir):
    RUNNERS.build(cfg).train()
    stages = json.loads((work_dir / 'stages.json').read_text())['stages']
    assert all(stage['state'] == 'done' for stage in stages.values())
    assert all(0 <= stage['metrics']['mIoU'] <= 100 for stage in stages.values())
    return stages


def test_cityscapes_at_half_size(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'dmt_deeplabv2_r101_1_8_cityscapes-256x512.py')
    root, work_dir = tmp_path / 'data', tmp_path / 'work'
    names = make_cityscapes(root)
    shrink(cfg, root, work_dir, names, 19)
    cfg.merge_from_dict(dict(image_size=(64, 32), crop_size=(16, 32)))
    stages = run(cfg, work_dir)
    assert set(stages) == {f'stage_{r}_{m}' for r in range(2) for m in ('coco', 'imagenet')}
    label, _ = PseudoLabelStore(work_dir / 'stage_1_coco' / 'pseudo_labels').get(names[3])
    assert label.shape == (32, 64)  # half of the files


def test_voc_padded_and_labeled_by_the_rule_of_dst_cbc(tmp_path, monkeypatch):
    cfg = Config.fromfile(CONFIGS / 'dst-cbc_deeplabv2_r101_1_20_pascal_voc12-321x321.py')
    root, work_dir = tmp_path / 'data', tmp_path / 'work'
    names = make_voc(root)
    shrink(cfg, root, work_dir, names, 21)
    cfg.merge_from_dict(dict(crop_size=(32, 32), image_size=(48, 48)))
    labeled_at, scored_at = [], []

    def predict(self, inputs, data_samples=None):
        where = scored_at if 'gt_sem_seg' in data_samples[0] else labeled_at
        where.append(tuple(inputs.shape[2:]))
        return original(self, inputs, data_samples)

    original = EncoderDecoder.predict
    monkeypatch.setattr(EncoderDecoder, 'predict', predict)
    assert set(run(cfg, work_dir)) == {'stage_0_coco', 'stage_1_coco'}
    label, _ = PseudoLabelStore(work_dir / 'stage_1_coco' / 'pseudo_labels').get(names[4])
    assert label.shape == (48, 60)  # without the padding
    # The canvas is that of evaluation alone.
    assert set(labeled_at) == {(32, 32)} and set(scored_at) == {(505, 505)}


def test_a_baseline_is_round_0_alone_and_reads_no_unlabeled_list(tmp_path):
    cfg = Config.fromfile(CONFIGS / 'labeled-only_deeplabv2_r101_pascal_voc12-321x321.py')
    root, work_dir = tmp_path / 'data', tmp_path / 'work'
    names = make_voc(root)
    shrink(cfg, root, work_dir, names, 21, ratios=[])
    cfg.merge_from_dict(dict(crop_size=(32, 32), unlabeled_list='splits/none.txt'))
    assert set(run(cfg, work_dir)) == {'stage_0_coco'}
