"""Part of a classification dataset, by a list of names."""

import copy
import os.path as osp
from typing import Any, Dict, Iterator, List, Sequence

from mmpretrain.datasets import BaseDataset

from mmdmt.classification.soft_labels import SoftLabelStore
from mmdmt.datasets.splits.files import read_list
from mmdmt.registry import DATASETS


@DATASETS.register_module()
class ListedDataset(BaseDataset):
    """The images of any mmpretrain dataset that a list names, with or without their labels.

    Every data info has a ``name``: the path below the image folder (``cat/001.png``), or, where
    images are not files (CIFAR), the number of the image in five digits (``00042``).

    With ``soft_labels`` only the images that were selected there are left. They have the stored
    class probabilities as ``soft_label`` and the most probable class as ``gt_label``.

    Args:
        dataset (dict): Config of the dataset, such as
            ``dict(type='mmpretrain.CIFAR10', data_root=..., split='train')`` or
            ``dict(type='mmpretrain.CustomDataset', data_prefix=...)``, without a pipeline.
        ann_file (str): Text file with one name a line, inside ``data_root``. Empty to take all.
            Defaults to ''.
        labeled (bool): Whether to keep the labels. Defaults to True.
        soft_labels (str): File of a :class:`~mmdmt.pseudo.SoftLabelStore`. Defaults to '': none.
        **kwargs: Of mmpretrain's ``BaseDataset``: ``data_root``, ``pipeline``, ``metainfo``, ...

    Raises:
        FileNotFoundError: If the list does not exist.
        ValueError: If the list names an image that the dataset does not have, or one twice, or
            an image has no stored soft label.
    """

    def __init__(
        self,
        dataset: dict,
        ann_file: str = '',
        labeled: bool = True,
        soft_labels: str = '',
        **kwargs: Any,
    ) -> None:
        self.dataset_cfg = dataset
        self.labeled = labeled
        self.soft_labels = soft_labels
        super().__init__(ann_file=ann_file, **kwargs)

    def load_data_list(self) -> List[Dict[str, Any]]:
        """Find the listed images: the data info of each, in the order of the list."""
        infos = {info['name']: info for info in self._all_infos()}
        infos = [infos[name] for name in self._listed(list(infos))]
        if self.soft_labels:
            return list(self._soft_labeled(infos))
        if not self.labeled:
            infos = [{k: v for k, v in info.items() if k != 'gt_label'} for info in infos]
        return infos

    def _all_infos(self) -> Iterator[Dict[str, Any]]:
        """Data infos of the whole dataset, with names."""
        config = dict(copy.deepcopy(self.dataset_cfg), pipeline=[], serialize_data=False)
        dataset = DATASETS.build(config)
        self._metainfo = {**dataset.metainfo, **self._metainfo}
        root = dataset.data_prefix.get('img_path') or ''
        for index in range(len(dataset)):
            info = dataset.get_data_info(index)
            path = info.get('img_path')
            name = f'{index:05}' if path is None else osp.relpath(path, root or '.')
            yield dict(info, name=name.replace(osp.sep, '/'))

    def _listed(self, names: Sequence[str]) -> List[str]:
        """The names of the list, or all if there is none."""
        if not self.ann_file:
            return list(names)
        listed, known = read_list(self.ann_file), set(names)
        unknown = [name for name in listed if name not in known]
        if unknown or not listed:
            wrong = ''.join(f', {name!r}' for name in unknown[:5])
            raise ValueError(
                f'{self.ann_file} names {len(listed)} images, {len(unknown)} of which are not in '
                f'the {self.dataset_cfg["type"]} of {len(names)} images{wrong}; names look like '
                + ', '.join(map(repr, names[:2]))
            )
        return listed

    def _soft_labeled(self, infos: Sequence[dict]) -> Iterator[Dict[str, Any]]:
        """The selected images with their stored soft labels."""
        stored = SoftLabelStore(self.soft_labels).read()
        rows = {name: row for row, name in enumerate(stored.names)}
        missing = [info['name'] for info in infos if info['name'] not in rows]
        if missing:
            raise ValueError(
                f'{self.soft_labels} has no soft label of {len(missing)} images, such as '
                f'{missing[0]!r}: delete it and run the stage again'
            )
        for info in infos:
            row = rows[info['name']]
            soft = stored.probabilities[row]
            if stored.selected[row]:
                yield dict(info, gt_label=int(soft.argmax()), soft_label=soft)
