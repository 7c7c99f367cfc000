"""Evaluation protocols by name: at which size a dataset is predicted and scored.

Numbers from different protocols cannot be compared, and which one a paper used is a matter of a
few lines in its code. Here it is one line: ``evaluation_protocol='cityscapes_half'`` in a config
or with ``--cfg-options``.
"""

import copy
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from mmengine.config import Config

#: Windows of a sliding evaluation overlap by a third.
STRIDE = 2 / 3
# As the training pipelines do: truncated files are errors, and 8 bits a channel stay what they are.
_LOAD = dict(type='LoadImageFromFile', imdecode_backend='pillow')

Size = Tuple[int, int]


@dataclass(frozen=True)
class EvaluationProtocol:
    """How the images of one dataset are predicted and scored.

    Attributes:
        dataset (str): mmseg type of the validation dataset.
        image_scale (tuple[int, int], optional): Width and height that images are brought to before
            the network; by default they keep their size.
        keep_ratio (bool): Whether ``image_scale`` is a bound that keeps the aspect ratio.
        scale_labels (bool): Whether labels are brought to ``image_scale`` too (nearest neighbor)
            and the score is taken there. Otherwise predictions are scaled to the labels' size.
        pad_to (tuple[int, int], optional): Height and width that images are padded to at the
            bottom and right, in the color of the preprocessor's ``padding``. What was predicted
            there is cut off before scoring.
        slide (bool): Whether windows of the training crop are predicted and averaged.
    """

    dataset: str
    image_scale: Optional[Size] = None
    keep_ratio: bool = False
    scale_labels: bool = False
    pad_to: Optional[Size] = None
    slide: bool = False

    def pipeline(self) -> list:
        """Pipeline that scores by this protocol."""
        if not self.scale_labels:
            return self.inference_pipeline()
        return [
            dict(_LOAD, type='mmdmt.LoadImageAtSize', scale=self.image_scale),
            dict(type='mmdmt.LoadAnnotationsAtImageSize'),
            dict(type='PackSegInputs'),
        ]

    def inference_pipeline(self) -> list:
        """Pipeline of mmseg's own transforms, with the prediction at the size of the file."""
        steps = [dict(_LOAD)]
        if self.image_scale is not None:
            steps.append(dict(type='Resize', scale=self.image_scale, keep_ratio=self.keep_ratio))
        # After Resize: the labels keep their size.
        return [*steps, dict(type='LoadAnnotations'), dict(type='PackSegInputs')]


VOC, CITYSCAPES = 'PascalVOCDataset', 'CityscapesDataset'
#: By name; ``docs/configs.md`` says who evaluates like this.
PROTOCOLS: Dict[str, EvaluationProtocol] = {
    'pascal_voc12_whole': EvaluationProtocol(VOC),
    'pascal_voc12_padded': EvaluationProtocol(VOC, pad_to=(505, 505)),
    'cityscapes_whole': EvaluationProtocol(CITYSCAPES),
    'cityscapes_sliding': EvaluationProtocol(CITYSCAPES, slide=True),
    'cityscapes_half': EvaluationProtocol(CITYSCAPES, (1024, 512), scale_labels=True),
    'cityscapes_half_input': EvaluationProtocol(CITYSCAPES, (1024, 512)),
    'ade20k': EvaluationProtocol('ADE20KDataset', (2048, 512), keep_ratio=True),
    'ade20k_whole': EvaluationProtocol('ADE20KDataset'),
}


def apply_protocol(cfg: Config) -> Config:
    """Write the protocol that ``cfg.evaluation_protocol`` names into ``cfg``, and drop the name.

    Validation and test pipelines, ``test_pipeline``, the padding of the data preprocessor and the
    segmentor's ``test_cfg`` are set in place, also of members of mutual training that have a
    segmentor of their own; training is left as it is.

    Raises:
        ValueError: If the name is unknown or the protocol is for another dataset, or it needs
            windows and the training pipeline has no crop.
    """
    name = cfg.pop('evaluation_protocol', None)
    if not name:
        return cfg
    if name not in PROTOCOLS:
        raise ValueError(f'`evaluation_protocol` {name!r} is unknown; known: {sorted(PROTOCOLS)}')
    protocol = PROTOCOLS[name]
    for section in ('val_dataloader', 'test_dataloader'):
        if cfg.get(section):
            _check_dataset(name, protocol, section, cfg[section].dataset)
            cfg[section].dataset.pipeline = protocol.pipeline()
    cfg.test_pipeline = protocol.inference_pipeline()
    networks = [*_networks(cfg.model), *_networks_of_members(cfg)]
    for network in networks:
        network['test_cfg'] = _test_cfg(network, protocol, cfg)
    for holder in (*networks, cfg.model, cfg):
        # mmseg cuts off again only what was padded in the data preprocessor.
        preprocessor = holder.get('data_preprocessor') or {}
        preprocessor.pop('test_cfg', None)
        if protocol.pad_to is not None:
            preprocessor['test_cfg'] = dict(size=protocol.pad_to)
    return cfg


def _check_dataset(
    name: str, protocol: EvaluationProtocol, section: str, dataset: Dict[str, Any]
) -> None:
    found = str(dataset.get('type')).split('.')[-1]
    if found != protocol.dataset:
        fitting = sorted(key for key, value in PROTOCOLS.items() if value.dataset == found)
        raise ValueError(
            f'`evaluation_protocol` {name!r} is for {protocol.dataset}, but `{section}` has '
            f'{found}; for that there are {fitting}'
        )


def _networks(model: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The ordinary segmentors: an online method holds one, or several by name."""
    inner = model.get('segmentor', model)
    return [inner] if 'type' in inner else list(inner.values())


def _networks_of_members(cfg: Config) -> List[Dict[str, Any]]:
    """The segmentors that members of mutual training have instead of the config's."""
    members = (cfg.get('mutual') or {}).get('members', [])
    models = [(member.get('cfg_options') or {}).get('model') or {} for member in members]
    return [model for model in models if model.get('_delete_')]


def _test_cfg(network: Dict[str, Any], protocol: EvaluationProtocol, cfg: Config) -> dict:
    """Whole images or windows; other keys of the segmentor's ``test_cfg`` stay."""
    found = copy.deepcopy(dict(network.get('test_cfg') or {}))
    kept = {key: value for key, value in found.items() if key not in ('crop_size', 'stride')}
    if not protocol.slide:
        return dict(kept, mode='whole')
    crop = _train_crop(cfg)
    stride = tuple(int(side * STRIDE) for side in crop)
    return dict(kept, mode='slide', crop_size=crop, stride=stride)


def _train_crop(cfg: Config) -> Size:
    """The crop (height, width) of the first training source."""
    source = cfg.train_dataloader.dataset
    while 'pipeline' not in source and (source.get('datasets') or source.get('dataset')):
        source = source.datasets[0] if source.get('datasets') else source.dataset
    crops = [tuple(s.crop_size) for s in source.get('pipeline', ()) if s.type == 'RandomCrop']
    if not crops:
        raise ValueError(
            'an `evaluation_protocol` with windows takes their size from RandomCrop in the training'
            ' pipeline, which has none'
        )
    return crops[0]
