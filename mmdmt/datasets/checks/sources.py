"""The one reader of datasets, built or configured: their lists, images, masks and labels."""

import copy
import logging
import os.path as osp
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Optional

from mmengine.dataset import BaseDataset
from mmengine.logging import print_log
from mmengine.utils import is_abs

from mmdmt.datasets.checks.file_facts import ImageRules, LabelRules
from mmdmt.datasets.checks.problems import Problem
from mmdmt.datasets.mask_values import MaskValues
from mmdmt.datasets.splits.files import write_list
from mmdmt.datasets.transforms.load_bands import LoadBands
from mmdmt.registry import DATASETS, TRANSFORMS


@dataclass(frozen=True)
class Sample:
    """One image as a dataset names it."""

    image: Optional[str]  # path; None if the image is not a file of its own (CIFAR)
    mask: Optional[str]
    label: Optional[int]  # class of the whole image
    identity: str  # the same for the same image, however its folder is spelled or linked
    file: str  # what a problem points at: the list, or the image where there is no list
    line: Optional[int]
    odd: bool  # the line itself is a problem already

    def problem(self, kind: str, found: str) -> Problem:
        """Make a problem of this sample."""
        return Problem(kind, self.file, self.line, found)


@dataclass(frozen=True)
class Source:
    """One innermost dataset, read."""

    file: str  # its list, or its image folder
    samples: list[Sample]  # every sample once
    has_list: bool
    labeled: bool
    classes: tuple[str, ...]  # empty where it does not name them
    rules: LabelRules
    image_rules: ImageRules


@dataclass
class _ListFile:
    """First line, from 1, of each id of a list; ids of odd lines; all that is wrong."""

    path: str
    lines: dict[str, int] = field(default_factory=dict)
    odd: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)


def read_sources(dataset: Any, problems: list[Problem]) -> list[Source]:
    """Read every innermost dataset that has its list and folders and can be built.

    Args:
        dataset (BaseDataset | dict | list): Dataset, wrappers of datasets, or a config of such;
            None holds nothing. A configured one is built without its pipeline.
        problems (list[Problem]): Gets all that is wrong with lists, folders and configs.
    """
    sources = []
    for leaf in _leaves(dataset):
        if _is_remote(leaf):
            text = f'data check: {_name(leaf)} is not on a local disk and is left out'
            print_log(text, 'current', logging.WARNING)
            continue
        missing = _missing_paths(leaf)
        listed = _read_list(leaf, _suffixes(leaf))
        problems += missing + (listed.problems if listed else [])
        if missing or (listed and not any(listed.lines)):
            continue  # one cause, one problem: not every image of it as well
        built = _build(leaf, listed, problems) if isinstance(leaf, Mapping) else leaf
        if built is not None:
            # Again: only a built dataset knows the suffix that its class sets.
            listed = _read_list(leaf, _suffixes(built))
            problems += listed.problems if listed else []
            sources.append(_read_source(built, listed, leaf, problems))
    return sources


# --- Settings, which a config has as keys and a dataset as attributes


def _setting(leaf: Any, key: str, default: Any = None) -> Any:
    value = leaf.get(key) if isinstance(leaf, Mapping) else getattr(leaf, key, None)
    return default if value is None else value


def _name(leaf: Any) -> str:
    return str(leaf.get('type')) if isinstance(leaf, Mapping) else type(leaf).__name__


def _joined(leaf: Any, path: str) -> str:
    """Put ``data_root`` in front of a path; a built dataset has done so already."""
    root = _setting(leaf, 'data_root', '')
    if isinstance(leaf, Mapping) and root and path and not is_abs(path):
        return osp.join(root, path)
    return path


def _folder(leaf: Any, key: str = 'img_path') -> Optional[str]:
    """Folder by its ``data_prefix`` key; None where it is not set."""
    prefix = _setting(leaf, 'data_prefix', {})
    prefix = dict(img_path=prefix) if isinstance(prefix, str) else prefix
    return _joined(leaf, prefix[key]) if prefix.get(key) else None


def _suffixes(leaf: Any) -> tuple[str, ...]:
    suffix = _setting(leaf, 'img_suffix', ())
    return (suffix,) if isinstance(suffix, str) else tuple(suffix)


def _is_remote(leaf: Any) -> bool:
    """Whether a dataset lies in an object store, where files cannot be checked like this."""
    backend = _setting(leaf, 'backend_args', {}).get('backend', 'local')
    root = f'{_setting(leaf, "data_root", "")}{_setting(leaf, "ann_file", "")}'
    return backend != 'local' or '://' in root


def _leaves(dataset: Any) -> Iterator[Any]:
    """Walk through wrappers, built or configured, down to the datasets that name files."""
    inner = _setting(dataset, 'datasets') or _setting(dataset, 'dataset')
    if isinstance(dataset, (list, tuple)):
        inner = dataset
    if dataset is None:
        return
    if inner is None or _takes_a_list(dataset):
        yield dataset
    else:
        for part in inner if isinstance(inner, (list, tuple)) else [inner]:
            yield from _leaves(part)


def _takes_a_list(dataset: Any) -> bool:
    """Whether it is no wrapper, though it may be a part of an inner dataset (ListedDataset)."""
    kind = dataset.get('type') if isinstance(dataset, Mapping) else type(dataset)
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    return isinstance(kind, type) and issubclass(kind, BaseDataset)


# --- Lists and folders


def _missing_paths(leaf: Any) -> list[Problem]:
    """Report folders and the list that do not exist: one problem, not one per image.

    mmseg lists the whole image folder when ``ann_file`` is a folder, and some datasets do so too
    when it does not exist: training would silently use every image.
    """
    problems = []
    path = _joined(leaf, _setting(leaf, 'ann_file', ''))
    if path and not osp.isfile(path):
        what = 'is a folder, not a list' if osp.isdir(path) else 'does not exist'
        problems.append(Problem('missing list', path, None, f'ann_file {path} {what}'))
    for path in (_folder(leaf, 'img_path'), _folder(leaf, 'seg_map_path')):
        if path is not None and not osp.isdir(path):
            problems.append(Problem('missing folder', path, None, f'{path} is not a folder'))
    return problems


def _read_list(leaf: Any, suffixes: tuple[str, ...]) -> Optional[_ListFile]:
    """Read the list of a dataset; None where it has none or the file is missing."""
    path = _joined(leaf, _setting(leaf, 'ann_file', ''))
    if not path or not osp.isfile(path):
        return None
    listed = _ListFile(path)
    with open(path, encoding='utf-8', errors='replace') as lines:
        for number, name in enumerate(map(str.strip, lines), start=1):
            oddity = _oddity(name, suffixes)
            if oddity:
                listed.problems.append(Problem('odd line', path, number, oddity))
                listed.odd.add(name)
            elif name in listed.lines:
                text = f'{name!r} is on line {listed.lines[name]} already'
                listed.problems.append(Problem('duplicate id', path, number, text))
            listed.lines.setdefault(name, number)
    if not any(listed.lines):
        listed.problems = [Problem('empty list', path, None, 'the list holds no id')]
    return listed


def _oddity(name: str, suffixes: tuple[str, ...]) -> Optional[str]:
    if not name:
        return 'blank line'
    if name.startswith('\ufeff'):
        return f'{name!r} starts with a byte order mark'
    if '\ufffd' in name:
        return f'{name!r} is not UTF-8'
    if '\t' in name:
        return f'{name!r} has more than one column'
    carried = next((suffix for suffix in suffixes if suffix and name.endswith(suffix)), None)
    if carried:
        return f'{name!r} carries the suffix {carried!r}, which is added to every id'
    return None


# --- Samples


def _build(
    config: Mapping, listed: Optional[_ListFile], problems: list[Problem]
) -> Optional[BaseDataset]:
    """Build a dataset without its pipeline, which could load anything."""
    # mmengine cannot serialize an empty dataset; here it must be found empty instead.
    config = dict(copy.deepcopy(config), pipeline=[], serialize_data=False, lazy_init=False)
    for key in {'soft_labels', 'only'} & set(config):
        config[key] = ''  # of classification, of reliable images; not made yet
    with tempfile.TemporaryDirectory() as folder:
        if listed and listed.problems:
            # A dataset may refuse a faulty list, which would hide what else is wrong.
            config['ann_file'] = osp.join(folder, osp.basename(listed.path))
            write_list(config['ann_file'], [n for n in listed.lines if n not in listed.odd])
        try:
            return DATASETS.build(config)
        except (AssertionError, OSError, RuntimeError, ValueError) as error:
            where = _folder(config) or (listed.path if listed else _name(config))
            found = f'{_name(config)}: {type(error).__name__} {error}'
            problems.append(Problem('unreadable dataset', where, None, found))
            return None


def _image_rules(leaf: Any) -> ImageRules:
    """What the first step of a dataset's pipeline makes of images; without one, as by default."""
    steps = _setting(leaf, 'pipeline', ())
    steps = getattr(steps, 'transforms', steps)
    if not steps:
        return ImageRules()
    load = TRANSFORMS.build(steps[0]) if isinstance(steps[0], Mapping) else steps[0]
    if isinstance(load, LoadBands):
        return ImageRules(rgb=False, oriented=False, bands=load.bands or ())
    color = getattr(load, 'color_type', '')
    rgb = color.startswith('color') and getattr(load, 'imdecode_backend', '') != 'tifffile'
    return ImageRules(rgb, oriented=not color.endswith('ignore_orientation'))


def mask_values_of(dataset: Any) -> Optional[MaskValues]:
    """What the pipeline of a dataset, or of its config, says of the values of masks.

    Raises:
        ValueError: What it says is wrong.
    """
    steps = _setting(dataset, 'pipeline', ())
    for step in getattr(steps, 'transforms', steps):
        values = _setting(step, 'mask_values')
        if values:
            return values if isinstance(values, MaskValues) else MaskValues.parse(values)
    return None


def _read_source(
    dataset: BaseDataset,
    listed: Optional[_ListFile],
    leaf: Any,
    problems: list[Problem],
) -> Source:
    """Read a built dataset; ``leaf`` is what it was built from, with the pipeline."""
    image_rules, values = _image_rules(leaf), mask_values_of(leaf)
    by_image = {} if listed is None else _names_by_image(dataset, listed)
    infos = map(dataset.get_data_info, range(len(dataset)))
    samples = [_sample(info, dataset, listed, by_image) for info in infos]
    where = _folder(dataset) or _setting(dataset, 'data_root') or _name(dataset)
    if not samples and listed is None:
        found = f'no image {where}/**/*{_setting(dataset, "img_suffix", "")}'
        problems.append(Problem('empty list', where, None, found, 'correct the folder or suffix'))
    labeled = any(sample.mask is not None or sample.label is not None for sample in samples)
    classes = dataset.metainfo.get('classes')
    return Source(
        file=listed.path if listed else where,
        samples=list({(s.identity, s.mask): s for s in samples}.values()),
        has_list=listed is not None,
        labeled=_setting(dataset, 'labeled', labeled),
        classes=tuple(classes or ()),
        rules=LabelRules(
            None if classes is None else len(classes),
            _setting(dataset, 'ignore_index', 255),
            _setting(dataset, 'reduce_zero_label', False),
            _setting(dataset, 'label_map'),
            values,
        ),
        image_rules=image_rules,
    )


def _names_by_image(dataset: BaseDataset, listed: _ListFile) -> dict[str, str]:
    """Map image paths, composed as ``BaseSegDataset`` does it, to ids of the list."""
    root = _folder(dataset) or ''
    ends = _suffixes(dataset)
    return {osp.join(root, name + end): name for name in listed.lines for end in ends}


def _sample(
    info: Mapping, dataset: BaseDataset, listed: Optional[_ListFile], by_image: Mapping[str, str]
) -> Sample:
    """Pair a data info with the line of the list that names it."""
    image, name = info.get('img_path'), info.get('name', info.get('sample_idx'))
    if image is None:
        identity = f'{_setting(dataset, "dataset_cfg", _name(dataset))}: {name}'
    else:
        identity = osp.join(_real_folder(osp.dirname(image)), osp.basename(image))
    found = image, info.get('seg_map_path'), info.get('gt_label'), identity
    if listed is None:
        return Sample(*found, image or identity, None, False)
    name = by_image.get(image, name)  # no line: a dataset that composes its paths in its own way
    return Sample(*found, listed.path, listed.lines.get(name), name in listed.odd)


@cache
def _real_folder(path: str) -> str:
    return osp.realpath(path)
