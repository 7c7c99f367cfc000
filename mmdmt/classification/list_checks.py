"""Finds faults in the lists, images and classes of image classification."""

import copy
import logging
import os.path as osp
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from mmengine.dist import is_main_process
from mmengine.logging import print_log

from mmdmt.datasets.checks.file_facts import FactCache, map_in_threads
from mmdmt.datasets.checks.problems import Problem
from mmdmt.registry import DATASETS


class _Image(NamedTuple):
    """An image of a source and where it is listed."""

    identity: str
    path: Optional[str]
    file: str
    line: Optional[int]
    label: Optional[int]

    def problem(self, kind: str, found: str) -> Problem:
        return Problem(kind, self.file, self.line, found)


class _Source(NamedTuple):
    """A data set: its list or folder, its images, and the names of its classes."""

    file: str
    images: List[_Image]
    classes: Tuple[str, ...]
    labeled: bool


def check_listed(
    train: Any,
    val: Any = None,
    full: bool = True,
    cache_file: Optional[str] = None,
    test: Any = None,
    num_classes: Optional[int] = None,
) -> List[Problem]:
    """Find what is wrong with lists, images and classes of classification.

    A class without labeled images, and a test set that cannot be built (yet), are warned of.

    Args:
        train (dict | BaseDataset): A ``mmdmt.SemiDataset`` of ``mmdmt.ListedDataset``, or its
            config.
        val (dict | BaseDataset, optional): A ``mmdmt.ListedDataset``, or its config.
        full (bool): Decode every image that is a file. Defaults to True.
        cache_file (str, optional): Remembers sound files.
        test (dict | BaseDataset, optional): The test set, of which only the classes are looked at.
        num_classes (int, optional): ``model.head.num_classes``.

    Returns:
        list[Problem]: Everything that is wrong; empty if all is well.
    """
    problems: List[Problem] = []
    trained_on = [_read(leaf, problems) for leaf in _leaves(train)]
    held_out = [_read(leaf, problems) for leaf in _leaves(val)]
    labeled = _by_identity(source for source in trained_on if source.labeled)
    unlabeled = _by_identity(source for source in trained_on if not source.labeled)
    validated = _by_identity(held_out)
    problems += _overlaps(labeled, unlabeled, validated)
    problems += _faulty_classes(trained_on, [*held_out, *_test_sources(test)], num_classes)
    images = {**labeled, **unlabeled, **validated}
    return problems + (_faulty_files(images.values(), cache_file) if full else [])


def _by_identity(sources: Iterable[_Source]) -> Dict[str, _Image]:
    return {image.identity: image for source in sources for image in source.images}


def _overlaps(
    labeled: Dict[str, _Image], unlabeled: Dict[str, _Image], validated: Dict[str, _Image]
) -> List[Problem]:
    """Images that are in two sets that must not meet."""
    problems = []
    for identity in unlabeled.keys() & labeled.keys():
        image, where = unlabeled[identity], labeled[identity]
        if image.line is not None:  # all images of a folder may include the labeled ones
            found = f'{identity} is labeled, too ({where.file}:{where.line})'
            problems.append(image.problem('in both lists', found))
    for images in (labeled, unlabeled):
        for identity in images.keys() & validated.keys():
            found = f'{identity} is a validation image, too ({validated[identity].file})'
            problems.append(images[identity].problem('validation overlap', found))
    return problems


def check_classes(dataset: Any, expected: Sequence[str], whose: str) -> List[Problem]:
    """Compare the classes of a built data set with those that it should have.

    Args:
        dataset (BaseDataset): The data set; one that does not name its classes is not compared.
        expected (Sequence[str]): Names of the classes by number.
        whose (str): What has these classes, for the message.

    Returns:
        list[Problem]: One if they differ, none otherwise.
    """
    source = _Source(_name_of(dataset), [], _classes(dataset), True)
    return _other_classes([source], tuple(expected), whose)


# ---------------------------------------------------------------------- classes


def _faulty_classes(
    trained_on: Sequence[_Source], others: Sequence[_Source], num_classes: Optional[int]
) -> List[Problem]:
    """Sets that number other classes than the first labeled set, and a head of another size."""
    labeled = [source for source in trained_on if source.labeled and source.classes]
    if not labeled:
        return []
    first = labeled[0]
    _warn_of_missing_labels(labeled, first.classes)
    problems = _other_classes([*labeled[1:], *others], first.classes, f'training ({first.file})')
    if num_classes is not None and num_classes != len(first.classes):
        found = (
            f'`model.head.num_classes` is {num_classes}, but the images have '
            f'{len(first.classes)} classes: {_some(first.classes)}'
        )
        fix = f'set `num_classes` (of the config, or of model.head) to {len(first.classes)}'
        problems.append(Problem('number of classes', first.file, None, found, fix))
    return problems


def _other_classes(
    sources: Sequence[_Source], expected: Tuple[str, ...], whose: str
) -> List[Problem]:
    return [
        Problem('other classes', source.file, None, _difference(source.classes, expected, whose))
        for source in sources
        if source.labeled and source.classes and source.classes != expected
    ]


def _difference(found: Tuple[str, ...], expected: Tuple[str, ...], whose: str) -> str:
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if not missing and not extra:
        return f'the classes {_some(found)} are in another order than those of {whose}'
    parts = [
        f'{what} {_some(names)}'
        for what, names in (('lacks', missing), ('also has', extra))
        if names
    ]
    return f'compared with {whose}, it ' + ' and '.join(parts) + ': classes get wrong numbers'


def _some(names: Sequence[str], limit: int = 10) -> str:
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _warn_of_missing_labels(sources: Sequence[_Source], classes: Tuple[str, ...]) -> None:
    found = {image.label for source in sources for image in source.images}
    missing = [name for number, name in enumerate(classes) if number not in found]
    if missing and found:
        files = ', '.join(source.file for source in sources)
        message = f'{files}: no labeled image of {_some(missing)}: they will never be predicted'
        print_log(message, 'current', logging.WARNING)


def _classes(dataset: Any) -> Tuple[str, ...]:
    """Names of the classes of a built data set; empty where it has none."""
    return tuple((getattr(dataset, 'metainfo', None) or {}).get('classes') or ())


def _test_sources(test: Any) -> List[_Source]:
    """The test set, which may be missing while training."""
    problems: List[Problem] = []
    sources = [_read(leaf, problems, with_images=False) for leaf in _leaves(test)]
    for problem in problems:
        print_log(f'test set: {problem.found}', 'current', logging.WARNING)
    return sources


# ---------------------------------------------------------------------- reading


def _leaves(dataset: Any) -> Iterator[Any]:
    """The innermost data sets, built or configured."""
    if dataset is None:
        return
    inner = _get(dataset, 'datasets')
    if inner is None:
        yield dataset
    else:
        for part in inner:
            yield from _leaves(part)


def _get(dataset: Any, key: str, default: Any = None) -> Any:
    return (
        dataset.get(key, default) if isinstance(dataset, dict) else getattr(dataset, key, default)
    )


def _name_of(dataset: Any) -> str:
    """List of a built data set, or its folder."""
    prefix = _get(dataset, 'data_prefix')
    folder = prefix.get('img_path') if isinstance(prefix, dict) else prefix
    root = _get(dataset, 'data_root')
    return _get(dataset, 'ann_file') or folder or root or type(dataset).__name__


def _read(leaf: Any, problems: List[Problem], with_images: bool = True) -> _Source:
    """Read a data set; what is wrong with its list goes to ``problems``."""
    configured, labeled = isinstance(leaf, dict), _get(leaf, 'labeled', True)
    root, path = _get(leaf, 'data_root') or '', _get(leaf, 'ann_file') or ''
    if configured and path:
        path = osp.join(root, path)
    nothing = _Source(path, [], (), labeled)
    if path and not osp.isfile(path):
        problems.append(Problem('missing list', path, None, f'{path} does not exist'))
        return nothing
    try:
        dataset = _build(leaf) if configured else leaf
        lines = _lines(path) if path else {}
    except (AssertionError, OSError, RuntimeError, ValueError) as error:
        found = f'{type(error).__name__} {error}'
        problems.append(Problem('unreadable data set', path or root, None, found))
        return nothing
    infos = map(dataset.get_data_info, range(len(dataset) if with_images else 0))
    whole = str(getattr(dataset, 'dataset_cfg', type(dataset).__name__))
    images = [_image(info, whole, path or root, lines) for info in infos]
    return _Source(path or _name_of(dataset), images, _classes(dataset), labeled)


def _image(info: Dict[str, Any], whole: str, file: str, lines: Dict[str, int]) -> _Image:
    """What a data info says; images that are no files are known by data set and number."""
    path, name = info.get('img_path'), info.get('name', str(info.get('sample_idx')))
    identity = f'{whole}: {name}' if path is None else osp.abspath(path)
    return _Image(identity, path, file, lines.get(name), info.get('gt_label'))


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
