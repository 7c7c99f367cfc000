"""Images, masks and classes that belong to stored pseudo-labels."""

import os.path as osp
from collections.abc import Sequence
from typing import Any, Dict, Optional

import cv2
import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.config import Config

from mmdmt.datasets import FolderDataset, LoadMasks
from mmdmt.datasets.checks.sources import mask_values_of
from mmdmt.evaluation.visualization import to_uint8_image
from mmdmt.registry import DATASETS


class LabelSource:
    """Images, masks and class names that belong to the names of a store.

    Args:
        cfg: Config whose ``train_dataloader.dataset`` has a labeled and an unlabeled source.
        mask_dir: Folder of the masks; default that of the labeled source, for images that lie in
            its image folder. Those of another dataset may have the same names.
        mask_suffix: End of their names; default that of the labeled source.

    Raises:
        ValueError: If the config has not two sources.
    """

    def __init__(
        self, cfg: Config, mask_dir: Optional[str] = None, mask_suffix: Optional[str] = None
    ) -> None:
        sources = cfg.train_dataloader.dataset.get('datasets', [])
        if len(sources) != 2:
            raise ValueError(
                f'{cfg.filename}: `train_dataloader.dataset` must be a mmdmt.SemiDataset of a '
                f'labeled and an unlabeled source, it has {len(sources)}'
            )
        self.unlabeled_cfg = sources[1]
        self.load_mask = LoadMasks()
        self.load_mask.mask_values = mask_values_of(sources[0])
        self.labeled = DATASETS.build(dict(sources[0], pipeline=[], lazy_init=True))
        unlabeled = DATASETS.build(sources[1])
        infos = (unlabeled.get_data_info(index) for index in range(len(unlabeled)))
        self.image_paths = {info['name']: info['img_path'] for info in infos}
        # As the images were loaded for labeling: the first transform decides on the size.
        self.load_image = Compose([_first_step(sources[1])])
        paired = isinstance(self.labeled, FolderDataset) and not mask_dir
        self.pairs = self.labeled.mask_paths() if paired else None
        self.mask_dir = mask_dir or self._own_masks()
        self.mask_suffix = mask_suffix or self.labeled.seg_map_suffix

    def _own_masks(self) -> str:
        """The mask folder of the labeled source; '' where no image to label is of this source."""
        prefix = self.labeled.data_prefix
        folder = osp.join(osp.realpath(prefix.get('img_path') or ''), '')
        folders = {osp.dirname(path) for path in self.image_paths.values()}
        own = any(osp.join(osp.realpath(path), '').startswith(folder) for path in folders)
        return (prefix.get('seg_map_path') or '') if own else ''

    @property
    def metainfo(self) -> Dict[str, Any]:
        """``classes`` and ``palette`` of the labeled source."""
        return self.labeled.metainfo

    def image(self, name: str) -> np.ndarray:
        """(H, W, 3) uint8 RGB image."""
        image = self.load_image(dict(img_path=self.image_paths[name]))['img']
        if image.dtype == np.uint8 and image.shape[-1] == 3:
            return np.ascontiguousarray(image[..., ::-1])
        low, high = np.percentile(image, (1, 99), axis=(0, 1))  # bands of any range
        unit = (image - low) / np.maximum(high - low, 1e-6)
        return to_uint8_image(torch.from_numpy(unit.transpose(2, 0, 1)))

    def truth(self, name: str, size: Sequence[int]) -> Optional[np.ndarray]:
        """(H, W) uint8 true classes at ``size`` (nearest neighbor); None if there is no mask."""
        path = osp.join(self.mask_dir, name + self.mask_suffix)
        if self.pairs is not None:
            path = self.pairs.get(self.image_paths[name], '')
        if not self.mask_dir or not osp.isfile(path):
            return None
        info = dict(
            seg_map_path=path,
            seg_fields=[],
            reduce_zero_label=self.labeled.reduce_zero_label,
            label_map=self.labeled.label_map,
        )
        mask = self.load_mask(info)['gt_seg_map']
        if mask.shape != tuple(size):  # labels of a protocol at reduced size
            mask = cv2.resize(mask, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)
        return mask


def _first_step(source: Dict[str, Any]) -> Dict[str, Any]:
    """The transform that loads the images of a source, or of its first part."""
    while 'pipeline' not in source:
        source = source['datasets'][0]
    return dict(source['pipeline'][0])
