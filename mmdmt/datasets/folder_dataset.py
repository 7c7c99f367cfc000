"""Images and masks that lie in a folder in any of several ways."""

import os.path as osp
from typing import Any, Dict, List

from mmseg.datasets import BaseSegDataset

from mmdmt.checks import listed
from mmdmt.datasets.folders import pair_masks
from mmdmt.datasets.splits.files import read_list
from mmdmt.registry import DATASETS


@DATASETS.register_module()
class FolderDataset(BaseSegDataset):
    """The images of a folder that have masks, whatever their suffixes and folders.

    mmseg's ``BaseSegDataset`` knows one suffix, one folder of images and one of masks. Here folders
    and names tell which mask is that of an image, see :func:`mmdmt.datasets.folders.pair_masks`.

    Args:
        ann_file (str): Text file with an image in each line, its path below the folder with its
            suffix. Defaults to '', all images that have a mask.
        data_prefix (dict): ``img_path`` is the folder, inside ``data_root``, of images and masks.
        img_suffix, seg_map_suffix (str): Not used; names have their suffixes.
        **kwargs: Of mmseg's ``BaseSegDataset``.

    Raises:
        ValueError: If a listed image is not there or has no mask, or masks cannot be paired.
    """

    def __init__(self, img_suffix: str = '', seg_map_suffix: str = '', **kwargs: Any) -> None:
        super().__init__(img_suffix='', seg_map_suffix='', **kwargs)

    def load_data_list(self) -> List[dict]:
        """Find the images and their masks."""
        folder, pairs = self.data_prefix['img_path'], self.mask_paths()
        images = list(pairs)
        if self.ann_file:
            images = [osp.join(folder, name) for name in read_list(self.ann_file)]
        bare = [image for image in images if image not in pairs]
        if bare:
            raise ValueError(
                f'{self.ann_file} lists {len(bare)} of {len(images)} images that are not below '
                f'{folder} or have no mask there: {listed(bare, 3)}. Restore them or take them off '
                'the list'
            )
        return [
            dict(
                img_path=image,
                seg_map_path=pairs[image],
                label_map=self.label_map,
                reduce_zero_label=self.reduce_zero_label,
                seg_fields=[],
            )
            for image in images
        ]

    def mask_paths(self) -> Dict[str, str]:
        """Path of the mask of each image of the folder that has one, listed or not."""
        folder = self.data_prefix['img_path']
        pairs = pair_masks(folder).items()
        return {osp.join(folder, a): osp.join(folder, b) for a, b in pairs if b}
