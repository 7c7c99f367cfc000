"""Refusing to train a classifier on faulty lists or images."""

import copy
import logging
import os.path as osp
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmdmt.datasets.file_facts import FactCache, map_in_threads
from mmdmt.datasets.problems import DatasetError, Problem
from mmdmt.registry import DATASETS, HOOKS

from .dataset_check_hook import DatasetCheckHook


class _Image(NamedTuple):
    """An image of a source and where it is listed."""

    identity: str
    path: Optional[str]
    file: str
    line: Optional[int]

    def problem(self, kind: str, found: str) -> Problem:
        return Problem(kind, self.file, self.line, found)


@HOOKS.register_module()
class ListCheckHook(DatasetCheckHook):
    """Checks the lists and images of ``mmdmt.ListedDataset`` before training.

    Refused are missing, empty or odd lists, names in both lists, training images that are
    validation images, and (``mode='full'``) images that are missing or cannot be decoded. The
    table is that of :class:`DatasetCheckHook`, as are the arguments.
    """

    def _find(self, train: Any, val: Any, work_dir: str) -> Any:
        """Return the problems, or the error that checking ended with: other ranks wait for it."""
        cache = osp.join(work_dir, 'dataset_check.json') if self.cache is True else self.cache
        try:
            problems = check_listed(train, val, self.mode == 'full', cache or None)
        except Exception as error:
            print_log('the data check itself failed', 'current', logging.ERROR)
            return DatasetError(f'the data check failed: {type(error).__name__}: {error}')
        print_log(f'data check ({self.mode}): {len(problems)} problems', 'current')
        return problems


def check_listed(
    train: Any, val: Any = None, full: bool = True, cache_file: Optional[str] = None
) -> List[Problem]:
    """Find what is wrong with lists and images of classification.

    Args:
        train (dict | BaseDataset): A ``mmdmt.SemiDataset`` of ``mmdmt.ListedDataset``, or its
            config.
        val (dict | BaseDataset, optional): A ``mmdmt.ListedDataset``, or its config.
        full (bool): Decode every image that is a file. Defaults to True.
        cache_file (str, optional): Remembers sound files.

    Returns:
        list[Problem]: Everything that is wrong; empty if all is well.
    """
    problems: List[Problem] = []
    labeled: Dict[str, _Image] = {}
    unlabeled: Dict[str, _Image] = {}
    for source in _sources(train):
        target = labeled if _get(source, 'labeled', True) else unlabeled
        target.update({image.identity: image for image in _images(source, problems)})
    held_out = {
        image.identity: image for source in _sources(val) for image in _images(source, problems)
    }
    for identity, image in unlabeled.items():
        if identity in labeled and image.line is not None:
            where = labeled[identity]
            found = f'{identity} is labeled, too ({where.file}:{where.line})'
            problems.append(image.problem('in both lists', found))
    for identity, image in labeled.items():
        if identity in held_out:
            found = f'{identity} is a validation image, too ({held_out[identity].file})'
            problems.append(image.problem('validation overlap', found))
    images = {**labeled, **unlabeled, **held_out}
    return problems + (_faulty_files(images.values(), cache_file) if full else [])


def _sources(dataset: Any) -> Iterator[Any]:
    """The innermost data sets, built or configured."""
    if dataset is None:
        return
    inner = _get(dataset, 'datasets')
    if inner is None:
        yield dataset
    else:
        for part in inner:
            yield from _sources(part)


def _get(dataset: Any, key: str, default: Any = None) -> Any:
    return (
        dataset.get(key, default) if isinstance(dataset, dict) else getattr(dataset, key, default)
    )


def _images(source: Any, problems: List[Problem]) -> List[_Image]:
    """Images of a source; what is wrong with its list goes to ``problems``."""
    configured = isinstance(source, dict)
    root, path = _get(source, 'data_root') or '', _get(source, 'ann_file') or ''
    if configured and path:
        path = osp.join(root, path)
    if path and not osp.isfile(path):
        problems.append(Problem('missing list', path, None, f'{path} does not exist'))
        return []
    try:
        dataset = _build(source) if configured else source
        lines = _lines(path) if path else {}
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        found = f'{type(error).__name__} {error}'
        problems.append(Problem('unreadable data set', path or root, None, found))
        return []
    infos = map(dataset.get_data_info, range(len(dataset)))
    whole = str(getattr(dataset, 'dataset_cfg', type(dataset).__name__))
    return [_image(info, whole, path or root, lines) for info in infos]


def _image(info: Dict[str, Any], whole: str, file: str, lines: Dict[str, int]) -> _Image:
    """What a data info says; images that are no files are known by data set and number."""
    path, name = info.get('img_path'), info.get('name', str(info.get('sample_idx')))
    identity = f'{whole}: {name}' if path is None else osp.abspath(path)
    return _Image(identity, path, file, lines.get(name))


def _build(source: dict) -> Any:
    """Build a data set without its pipeline and without labels that are not made yet."""
    config = dict(copy.deepcopy(source), pipeline=[], lazy_init=False)
    if 'soft_labels' in config:
        config['soft_labels'] = ''
    return DATASETS.build(config)


def _lines(path: str) -> Dict[str, int]:
    with open(path, encoding='utf-8-sig') as file:
        return {line.strip(): number for number, line in enumerate(file, start=1)}


def _faulty_files(images: Any, cache_file: Optional[str]) -> List[Problem]:
    """Images that are missing or cannot be decoded."""
    cache = FactCache(cache_file)

    def check(image: _Image) -> Optional[Problem]:
        if not osp.isfile(image.path):
            return image.problem('missing image', f'{image.path} does not exist')
        try:
            cache.image(image.path)
        except Exception as error:  # Pillow raises nearly anything on broken files
            found = f'{image.path}: {type(error).__name__} {error}'
            return image.problem('corrupt image', found)
        return None

    files = [image for image in images if image.path]
    try:
        found = map_in_threads(check, files, 'decoding images', None, is_main_process())
    finally:
        cache.save()
    return [problem for problem in found if problem is not None]
