"""Finding everything that is wrong with the data before training does.

Three entries, one report: :func:`check_dataset` for data sets or their configs,
:func:`check_folders` for plain folders, :func:`check_lists` for the lists alone (no image is
touched). Each returns all :class:`~mmdmt.datasets.checks.problems.Problem` it finds;
:func:`~mmdmt.datasets.checks.problems.raise_on_problems` makes an error of them.
"""

import copy
import logging
import os.path as osp
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Optional, Union

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmdmt.datasets.checks.file_facts import (
    FactCache,
    LabelRules,
    MaskModeError,
    image_facts,
    map_in_threads,
    mask_facts,
)
from mmdmt.datasets.checks.list_files import (
    ListFile,
    folder,
    folder_problems,
    is_remote,
    missing_list_problem,
    read_list_file,
    setting,
)
from mmdmt.datasets.checks.problems import DatasetError, Problem, format_problems, raise_on_problems
from mmdmt.datasets.splits.draws import write_list
from mmdmt.registry import DATASETS

__all__ = [
    'DatasetError',
    'Problem',
    'check_dataset',
    'check_folders',
    'check_lists',
    'format_problems',
    'raise_on_problems',
]

DatasetLike = Union[BaseDataset, Mapping, Any]


@dataclass(frozen=True)
class Sample:
    """One image as a data set names it.

    Attributes:
        image (str): Path.
        mask (str, optional): Path; None for an unlabeled image.
        file (str): What a problem points at: the list, or the image where there is no list.
        line (int, optional): Line in the list.
        skip (bool): The line itself is a problem already.
    """

    image: str
    mask: Optional[str]
    file: str
    line: Optional[int]
    skip: bool = False

    def problem(self, kind: str, found: str) -> Problem:
        """Make a problem of this sample."""
        return Problem(kind, self.file, self.line, found)

    @property
    def where(self) -> str:
        """``file:line``, or the image."""
        return self.file if self.line is None else f'{self.file}:{self.line}'


@dataclass
class Source:
    """One innermost data set, read.

    Attributes:
        samples (list[Sample]): Every sample once.
        has_list (bool): Whether a list names the samples, rather than a folder.
        rules (LabelRules): How mask ids become classes.
    """

    samples: list[Sample]
    has_list: bool
    rules: LabelRules
    labeled: bool = field(init=False)

    def __post_init__(self) -> None:
        self.labeled = any(sample.mask is not None for sample in self.samples)


def check_dataset(
    train: DatasetLike,
    val: Optional[DatasetLike] = None,
    full: bool = True,
    cache_file: Optional[Union[str, Path]] = None,
    workers: Optional[int] = None,
    progress: bool = True,
) -> list[Problem]:
    """Find every problem of a training set and, if given, the validation set.

    A data set is a built one or its config: anything like mmseg's ``BaseSegDataset``, or wrappers
    of such (``mmdmt.SemiDataset``, ``ConcatDataset``, ``RepeatDataset``, nested at will). Sources
    whose samples have a ``seg_map_path`` are the labeled ones. From a config, data sets are built
    without pipelines and only when their lists and folders exist.

    Data in an object store (``backend_args``) is left out, which is logged.

    Args:
        train (BaseDataset | dict): ``train_dataloader.dataset``.
        val (BaseDataset | dict, optional): ``val_dataloader.dataset``.
        full (bool): Decode every image and mask. False checks lists, existence and file headers
            (file type, mask against image size), not pixels. Defaults to True.
        cache_file (str | Path, optional): JSON file that remembers sound files, so that the next
            check decodes only new and changed ones. Used when ``full``.
        workers (int, optional): Threads. Defaults to the number of cores, at most 8.
        progress (bool): Show a progress bar on stderr. Defaults to True.

    Returns:
        list[Problem]: Everything that is wrong; empty if all is well.
    """
    problems: list[Problem] = []
    train_sources = _read_sources(train, problems)
    val_sources = [] if val is None else _read_sources(val, problems)
    problems += _labeled_and_unlabeled(train_sources)
    problems += _labeled_and_validation(train_sources, val_sources)
    checker = _FileChecker(full, cache_file if full else None)
    problems += checker.check(train_sources + val_sources, workers, progress)
    return list(dict.fromkeys(problems))


def check_lists(*datasets: Optional[DatasetLike]) -> list[Problem]:
    """Find missing, empty and odd lists and missing folders, without building any data set.

    Takes milliseconds. Meant for the moment before data sets are built, since building one from
    a missing or empty list either fails with a less helpful message or uses the whole folder.

    Args:
        *datasets (BaseDataset | dict): Data sets or their configs; None is skipped.

    Returns:
        list[Problem]: Everything that is wrong; empty if all is well.
    """
    problems = []
    for dataset in datasets:
        for leaf in [] if dataset is None else _leaves(dataset):
            if not is_remote(leaf):
                problems += _leaf_problems(leaf, read_list_file(leaf))
    return list(dict.fromkeys(problems))


def check_folders(
    img_dir: str,
    mask_dir: Optional[str] = None,
    labeled: Optional[str] = None,
    unlabeled: Optional[str] = None,
    val: Optional[str] = None,
    num_classes: Optional[int] = None,
    ignore_index: int = 255,
    reduce_zero_label: bool = False,
    img_suffix: str = '.jpg',
    mask_suffix: str = '.png',
    **options: Any,
) -> list[Problem]:
    """Find every problem of images, masks and lists that no config describes.

    Args:
        img_dir (str): Folder of the images.
        mask_dir (str, optional): Folder of the masks; None: nothing is labeled.
        labeled (str, optional): List of labeled ids. Without it, and without ``unlabeled``, every
            image of the folder is checked, as labeled if there is a ``mask_dir``.
        unlabeled (str, optional): List of unlabeled ids.
        val (str, optional): List of validation ids, in the same folders.
        num_classes (int, optional): Number of classes; None: ids are not checked.
        ignore_index (int): Id of pixels without a class. Defaults to 255.
        reduce_zero_label (bool): As in mmseg. Defaults to False.
        img_suffix (str): Suffix of image files. Defaults to ``'.jpg'``.
        mask_suffix (str): Suffix of mask files. Defaults to ``'.png'``.
        **options: ``full``, ``cache_file``, ``workers`` and ``progress`` of :func:`check_dataset`.

    Returns:
        list[Problem]: Everything that is wrong; empty if all is well.

    Raises:
        ValueError: If there is a ``labeled`` or ``val`` list but no ``mask_dir``.
    """
    if (labeled or val) and not mask_dir:
        raise ValueError(f'the list {labeled or val} names labeled images: mask_dir is needed')
    metainfo = None if num_classes is None else dict(classes=[str(c) for c in range(num_classes)])

    def config(list_file: Optional[str], prefix: dict) -> dict:
        return dict(
            type='mmseg.BaseSegDataset',
            ann_file=list_file or '',
            data_prefix={key: path for key, path in prefix.items() if path is not None},
            img_suffix=img_suffix,
            seg_map_suffix=mask_suffix,
            metainfo=metainfo,
            ignore_index=ignore_index,
            reduce_zero_label=reduce_zero_label,
        )

    both = dict(img_path=img_dir, seg_map_path=mask_dir)
    train = [config(labeled, both)] if labeled or not unlabeled else []
    train += [config(unlabeled, dict(img_path=img_dir))] if unlabeled else []
    return check_dataset(dict(datasets=train), config(val, both) if val else None, **options)


def _leaves(dataset: DatasetLike) -> Iterator[DatasetLike]:
    """Walk through wrappers, built or configured, down to the data sets that name files."""
    if isinstance(dataset, (list, tuple)):
        inner = dataset
    else:
        inner = setting(dataset, 'datasets') or setting(dataset, 'dataset')
    if inner is None:
        yield dataset
    elif isinstance(inner, (list, tuple)):
        for part in inner:
            yield from _leaves(part)
    else:
        yield from _leaves(inner)


def _leaf_problems(leaf: DatasetLike, list_file: Optional[ListFile]) -> list[Problem]:
    """Collect what is wrong with the list and the folders of one data set."""
    missing = missing_list_problem(leaf)
    problems = [] if missing is None else [missing]
    problems += folder_problems(leaf)
    return problems + (list_file.problems if list_file else [])


def _read_sources(dataset: DatasetLike, problems: list[Problem]) -> list[Source]:
    """Read every innermost data set that can be read; what is wrong goes to ``problems``."""
    sources = []
    for leaf in _leaves(dataset):
        if is_remote(leaf):
            text = f'data check: {_name(leaf)} is not on a local disk and is left out'
            print_log(text, 'current', logging.WARNING)
            continue
        list_file = read_list_file(leaf)
        found = _leaf_problems(leaf, list_file)
        problems += found
        if {'missing list', 'empty list', 'missing folder'} & {problem.kind for problem in found}:
            continue  # one cause, one problem: not every image of it as well
        built = _build(leaf, list_file, problems) if isinstance(leaf, Mapping) else leaf
        if built is not None:
            # Again: only a built data set knows the suffix that its class sets.
            list_file = read_list_file(leaf, setting(built, 'img_suffix', ''))
            problems += list_file.problems if list_file else []
            sources.append(_read_source(built, list_file, problems))
    return sources


def _build(
    config: Mapping, list_file: Optional[ListFile], problems: list[Problem]
) -> Optional[BaseDataset]:
    """Build a data set without its pipeline, which could load anything."""
    # mmengine cannot serialize an empty data set; here it must be found empty instead.
    config = dict(copy.deepcopy(config), pipeline=[], serialize_data=False, lazy_init=False)
    with tempfile.TemporaryDirectory() as folder_of_list:
        if list_file is not None and list_file.problems:
            # A data set may refuse a faulty list, which would hide what else is wrong.
            config['ann_file'] = osp.join(folder_of_list, osp.basename(list_file.path))
            write_list(config['ann_file'], list_file.ids)
        try:
            return DATASETS.build(config)
        except (AssertionError, OSError, ValueError) as error:
            where = folder(config, 'img_path') or _name(config)
            found = f'{_name(config)}: {type(error).__name__} {error}'
            problems.append(Problem('unreadable data set', where, None, found))
            return None


def _name(leaf: DatasetLike) -> str:
    return str(leaf.get('type')) if isinstance(leaf, Mapping) else type(leaf).__name__


def _read_source(
    dataset: BaseDataset, list_file: Optional[ListFile], problems: list[Problem]
) -> Source:
    infos = (dataset.get_data_info(index) for index in range(len(dataset)))
    samples = list(_samples(dataset, infos, list_file))
    if not samples and list_file is None:
        where = folder(dataset, 'img_path') or _name(dataset)
        suffix = setting(dataset, 'img_suffix', '')
        found = f'no image {where}/**/*{suffix}'
        problems.append(Problem('empty list', where, None, found, 'correct the folder or suffix'))
    classes = dataset.metainfo.get('classes')
    rules = LabelRules(
        None if classes is None else len(classes),
        setting(dataset, 'ignore_index', 255),
        setting(dataset, 'reduce_zero_label', False),
        setting(dataset, 'label_map'),
    )
    return Source(samples, list_file is not None, rules)


def _samples(
    dataset: BaseDataset, infos: Iterable[dict], list_file: Optional[ListFile]
) -> Iterator[Sample]:
    """Pair every data info, once, with the line of the list that names it."""
    by_image = {} if list_file is None else _names_by_image(dataset, list_file)
    seen = set()
    for info in infos:
        image, mask = info['img_path'], info.get('seg_map_path')
        if (image, mask) in seen:
            continue
        seen.add((image, mask))
        name = by_image.get(image)
        if list_file is None:
            yield Sample(image, mask, image, None)
        elif name is None:  # a data set that composes its paths in its own way
            yield Sample(image, mask, list_file.path, None)
        else:
            line = list_file.lines[name]
            yield Sample(image, mask, list_file.path, line, name in list_file.odd)


def _names_by_image(dataset: BaseDataset, list_file: ListFile) -> dict[str, str]:
    """Map image paths, composed as ``BaseSegDataset`` does it, to ids of the list."""
    root = setting(dataset, 'data_prefix', {}).get('img_path') or ''
    suffix = setting(dataset, 'img_suffix', '')
    suffixes = (suffix,) if isinstance(suffix, str) else suffix
    return {osp.join(root, name + end): name for name in list_file.lines for end in suffixes}


@cache
def _real_folder(path: str) -> str:
    return osp.realpath(path)


def _identity(image: str) -> str:
    """Name an image file regardless of how its folder is spelled or linked."""
    return osp.join(_real_folder(osp.dirname(image)), osp.basename(image))


def _by_identity(sources: Sequence[Source]) -> dict[str, Sample]:
    return {_identity(s.image): s for source in sources for s in source.samples if not s.skip}


def _labeled_and_unlabeled(sources: Sequence[Source]) -> Iterator[Problem]:
    """Find images that are in a labeled source and in an unlabeled list.

    An unlabeled *folder* may contain the labeled images: it was not drawn to be the rest.
    """
    labeled = _by_identity([source for source in sources if source.labeled])
    for source in sources:
        if source.labeled or not source.has_list:
            continue
        for sample in source.samples:
            other = None if sample.skip else labeled.get(_identity(sample.image))
            if other is not None:
                found = f'{sample.image} is labeled, too ({other.where})'
                yield sample.problem('in both lists', found)


def _labeled_and_validation(train: Sequence[Source], val: Sequence[Source]) -> Iterator[Problem]:
    """Find labeled training images that are validation images."""
    held_out = _by_identity(val)
    for source in train:
        for sample in source.samples if source.labeled else []:
            other = None if sample.skip else held_out.get(_identity(sample.image))
            if other is not None:
                found = f'{sample.image} is a validation image, too ({other.where})'
                yield sample.problem('validation overlap', found)


class _FileChecker:
    """Checks the files of samples, in threads."""

    def __init__(self, full: bool, cache_file: Optional[Union[str, Path]]) -> None:
        self.full = full
        self.cache = FactCache(cache_file)

    def check(
        self, sources: Sequence[Source], workers: Optional[int], progress: bool
    ) -> list[Problem]:
        tasks = [(s, source.rules) for source in sources for s in source.samples if not s.skip]
        title = 'decoding images and masks' if self.full else 'looking at images and masks'
        try:
            found = map_in_threads(lambda task: self._check(*task), tasks, title, workers, progress)
        finally:
            self.cache.save()  # also what an interrupted check has done need not be done again
        return [problem for problems in found for problem in problems]

    def _check(self, sample: Sample, rules: LabelRules) -> list[Problem]:
        problems: list[Problem] = []
        image = self._facts(sample, 'image', sample.image, problems)
        if sample.mask is None:
            return problems
        mask = self._facts(sample, 'mask', sample.mask, problems)
        if image and mask and (image.width, image.height) != (mask.width, mask.height):
            found = (
                f'{sample.mask} is {mask.width}x{mask.height}, '
                f'its image {image.width}x{image.height}'
            )
            problems.append(sample.problem('mask size', found))
        illegal = rules.illegal(mask.ids) if mask and mask.ids else []
        if illegal:
            problems.append(sample.problem('label id', _describe_ids(sample.mask, illegal, rules)))
        return problems

    def _facts(self, sample: Sample, kind: str, path: str, problems: list[Problem]):
        """Read the facts of a file; None if that is not possible, which is a problem."""
        if not osp.isfile(path):
            problems.append(sample.problem(f'missing {kind}', f'{path} does not exist'))
            return None
        try:
            if self.full:
                return self.cache.image(path) if kind == 'image' else self.cache.mask(path)
            read = image_facts if kind == 'image' else mask_facts
            return read(path, decode=False)
        except MaskModeError as error:
            problems.append(sample.problem('mask mode', f'{path}: {error}'))
        except Exception as error:  # Pillow raises nearly anything on broken files
            found = f'{path}: {type(error).__name__} {error}'
            problems.append(sample.problem(f'corrupt {kind}', found))
        return None


def _describe_ids(path: str, illegal: Sequence[int], rules: LabelRules) -> str:
    shown = ', '.join(str(label) for label in illegal[:8]) + (', ...' if len(illegal) > 8 else '')
    shift = ' after reduce_zero_label' if rules.reduce_zero_label else ''
    last = rules.num_classes - 1
    return f'{path} has ids {shown}: classes are 0 to {last}{shift}, ignored {rules.ignore_index}'
