"""Images without masks."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

from mmengine import fileio
from mmseg.datasets import BaseSegDataset

from mmdmt.checks import listed
from mmdmt.registry import DATASETS


@DATASETS.register_module()
class UnlabeledDataset(BaseSegDataset):
    """Images alone, from a list or from a whole folder. No mask is looked for.

    Every data info has ``img_path`` and ``name``, the path inside the image folder without
    suffix, by which pseudo-labels are stored.

    Args:
        ann_file (str): Text file with one name a line. Empty to take every image below the
            folder. Defaults to ''.
        img_suffix (str | Sequence[str]): End of the image files, or several. With several, a
            listed name takes the first one for which there is a file. Defaults to '.jpg'.
        data_prefix (dict, optional): ``img_path`` is the image folder, inside ``data_root``. By
            default that is ``data_root`` itself.
        name_prefix (str): Put before every name. Tells images of the same name in several folders
            apart. Defaults to ''.
        only (str): Text file of names, with their prefix, one a line: the others are left out.
            Defaults to '', all images.
        **kwargs: Of mmseg's ``BaseSegDataset``: ``data_root``, ``pipeline``, ``metainfo``, ...

    Raises:
        FileNotFoundError: If ``ann_file`` or the image folder does not exist. mmseg would take
            the whole folder for a list that is missing.
        ValueError: If there is no image, or two images have one name.
    """

    def __init__(
        self,
        ann_file: str = '',
        img_suffix: Union[str, Sequence[str]] = '.jpg',
        data_prefix: Optional[dict] = None,
        name_prefix: str = '',
        only: str = '',
        **kwargs: Any,
    ) -> None:
        self.img_suffixes = (img_suffix,) if isinstance(img_suffix, str) else tuple(img_suffix)
        self.name_prefix = name_prefix
        self.only = only
        data_prefix = dict(data_prefix or {})
        data_prefix.setdefault('img_path', '')
        if 'seg_map_path' in data_prefix:
            raise ValueError(
                'UnlabeledDataset reads no masks; take `seg_map_path` out of `data_prefix` '
                f'{data_prefix}'
            )
        kwargs.update(ann_file=ann_file, img_suffix=img_suffix, data_prefix=data_prefix)
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict]:
        """Find the images: ``img_path``, ``name`` and what mmseg's transforms expect."""
        folder = self.data_prefix['img_path']
        if not fileio.isdir(folder, backend_args=self.backend_args):
            raise FileNotFoundError(f'the image folder {folder} does not exist')
        files = list(self._listed(folder) if self.ann_file else self._found(folder))
        self._check_names(folder, [name for name, _ in files])
        if self.only:
            chosen = set(fileio.list_from_file(self.only))
            files = [row for row in files if self.name_prefix + row[0] in chosen]
            self.serialize_data &= bool(files)  # mmengine cannot serialize an empty dataset
        return [
            dict(
                img_path=fileio.join_path(folder, file, backend_args=self.backend_args),
                name=self.name_prefix + name,
                reduce_zero_label=self.reduce_zero_label,
                label_map=None,
                seg_fields=[],
            )
            for name, file in files
        ]

    def _listed(self, folder: str) -> Iterable[tuple[str, str]]:
        """(name, file) of each line of the list."""
        if not fileio.isfile(self.ann_file, backend_args=self.backend_args):
            raise FileNotFoundError(f'the list of unlabeled images {self.ann_file} does not exist')
        lines = fileio.list_from_file(self.ann_file, backend_args=self.backend_args)
        for name in filter(None, map(str.strip, lines)):
            yield name, name + self._suffix_of(folder, name)

    def _suffix_of(self, folder: str, name: str) -> str:
        if len(self.img_suffixes) == 1:  # whether the file is there is checked at training start
            return self.img_suffixes[0]
        for suffix in self.img_suffixes:
            path = fileio.join_path(folder, name + suffix, backend_args=self.backend_args)
            if fileio.exists(path, backend_args=self.backend_args):
                return suffix
        raise FileNotFoundError(
            f'{self.ann_file} lists {name}, but {folder} holds no file of that name with a suffix '
            f'of {self.img_suffixes}'
        )

    def _found(self, folder: str) -> Iterable[tuple[str, str]]:
        """(name, file) of each image below the folder, in a fixed order."""
        options = dict(list_dir=False, recursive=True, backend_args=self.backend_args)
        files = fileio.list_dir_or_file(folder, suffix=self.img_suffixes, **options)
        for file in sorted(path.replace('\\', '/') for path in files):
            # The longest suffix, so that '_left.png' wins over '.png' whatever their order.
            suffix = max((s for s in self.img_suffixes if file.endswith(s)), key=len)
            yield file[: -len(suffix)], file

    def _check_names(self, folder: str, names: list[str]) -> None:
        where = self.ann_file or folder
        if not names:
            raise ValueError(f'{where} has no image (`img_suffix={self.img_suffix!r}`)')
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f'{where} has {len(twice)} names more than once: {listed(twice)}')
