"""What of a labeled source stays for images without labels: its pipeline, and which images."""

import copy
import os.path as osp
from collections.abc import Iterator, Sequence
from typing import Dict, List, NamedTuple, Optional, Tuple

from mmdmt.checks import listed
from mmdmt.datasets.folders import IMAGE_SUFFIXES, find_images
from mmdmt.datasets.splits.files import read_list, write_list
from mmdmt.registry import DATASETS, TRANSFORMS, class_of

# By the name of a transform or of a class that it inherits from.
_KEPT = {
    'LoadImageFromFile', 'LoadImageFromNDArray', 'LoadImageFromNpyFile',
    'LoadSingleRSImageFromFile',
    'Resize', 'RandomResize', 'RandomChoiceResize', 'ResizeToMultiple', 'ResizeShortestEdge',
    'CenterCrop', 'RandomFlip', 'RandomRotate', 'RandomRotFlip', 'RGB2Gray', 'CLAHE', 'Albu',
    'RandomRescale', 'PadToCrop', 'LoadImageAtSize', 'LoadBands', 'PackSemiInputs',
}  # fmt: skip
_COLORS = {'PhotoMetricDistortion', 'AdjustGamma', 'RandomGrayscale', 'RandomCutOut'}
_LABELS = {'LoadAnnotations', 'GenerateEdge', 'SegRescale'}
_NESTED = {'RandomApply', 'RandomChoice', 'Compose'}
_REASONS = {
    'RandomMosaic': 'it mixes several images with their labels',
    'RandomDepthMix': 'it needs depth maps',
    'Normalize': 'methods normalize images themselves: let `data_preprocessor` do it',
}
_PADDING = 'Pad'


def pack_for_semi(pipeline: Sequence[dict]) -> List[dict]:
    """A training pipeline that packs what :class:`~mmdmt.datasets.PackSemiInputs` packs."""
    return [_packed(step) for step in copy.deepcopy(list(pipeline))]


def unlabeled_pipeline(pipeline: Sequence[dict], weak: bool) -> List[dict]:
    """Derive the pipeline of unlabeled images from that of labeled ones.

    What reads or needs labels is left out, and so is ``Pad``: padding is left to the preprocessor,
    which notes it, so that no loss counts it. ``RandomCrop`` no longer asks what is in a crop.

    Args:
        pipeline (Sequence[dict]): Of the labeled source, with unresolved types.
        weak (bool): Whether color augmentation is left out too: an online method labels a weak
            view and makes the strong ones itself.

    Raises:
        ValueError: If a transform is not known to work without labels; the message names it.
    """
    steps = (_derived(step, weak) for step in copy.deepcopy(list(pipeline)))
    return [step for step in steps if step is not None]


def _derived(step: dict, weak: bool) -> Optional[dict]:
    names = _names_of(step)
    if names & _NESTED:
        return _nested(step, weak)
    if names & _LABELS or _PADDING in names or (weak and names & _COLORS):
        return None
    if 'RandomCrop' in names:
        return dict(step, cat_max_ratio=1.0)
    if names & (_KEPT | _COLORS) or 'PackSegInputs' in names:
        return _packed(step)
    known = next((_REASONS[name] for name in names if name in _REASONS), None)
    reason = known or 'it is not known to work without labels'
    raise ValueError(
        f'the pipeline of unlabeled images cannot be derived from the labeled one, because of '
        f'{step["type"]!r}: {reason}. Take it out, or write the pipeline yourself, as '
        '`unlabeled_pipeline = [...]` at the top of the config'
    )


def _nested(step: dict, weak: bool) -> Optional[dict]:
    """A transform of transforms; of ``RandomChoice`` each choice is a list or a single one."""
    inner = step['transforms']
    parts = [unlabeled_pipeline(t if isinstance(t, (list, tuple)) else [t], weak) for t in inner]
    if 'RandomChoice' in _names_of(step):  # a choice may become empty: nothing is done then
        return dict(step, transforms=parts) if any(parts) else None
    flat = [step for part in parts for step in part]
    return dict(step, transforms=flat) if flat else None


def _packed(step: dict) -> dict:
    if str(step['type']).split('.')[-1] != 'PackSegInputs':
        return step
    own = {'meta_keys': (*step['meta_keys'], 'name')} if 'meta_keys' in step else {}
    return dict(step, type='mmdmt.PackSemiInputs', **own)


def _names_of(step: dict) -> set:
    """Names of the class of a transform and of what it inherits from."""
    kind = class_of(TRANSFORMS, step['type'])
    if not isinstance(kind, type):
        return {str(step['type']).split('.')[-1]}
    return {each.__name__ for each in kind.__mro__}


# --------------------------------------------------------------------------------------- images


class Images(NamedTuple):
    """The images of a source.

    Attributes:
        folder: That the names are below of.
        suffix: End of all files.
        names: Paths below the folder without suffix.
    """

    folder: str
    suffix: str
    names: List[str]

    def paths(self) -> Iterator[str]:
        """Real path of each image."""
        return (osp.realpath(osp.join(self.folder, name + self.suffix)) for name in self.names)


def innermost(dataset: dict) -> List[dict]:
    """The datasets with images in a config of wrapped ones.

    ``RepeatDataset`` makes no difference, because images are drawn endlessly.

    Raises:
        ValueError: If a wrapper is not known.
    """
    kind = str(dataset.get('type')).split('.')[-1]
    if kind == 'SemiDataset':  # a config of this package, of labeled images
        return innermost(dataset['datasets'][0])
    if kind == 'ConcatDataset':
        return [part for each in dataset['datasets'] for part in innermost(each)]
    if kind == 'RepeatDataset':
        return innermost(dataset['dataset'])
    if 'dataset' in dataset or 'datasets' in dataset or 'pipeline' not in dataset:
        raise ValueError(
            f'`train_dataloader.dataset` is or has a {dataset.get("type")!r}: labeled images may '
            'come from a dataset of mmseg, or from a ConcatDataset or RepeatDataset of such'
        )
    return [dataset]


def joined(parts: Sequence[dict]) -> dict:
    """One source of one or several datasets."""
    return parts[0] if len(parts) == 1 else dict(type='ConcatDataset', datasets=list(parts))


def images_of(part: dict) -> Images:
    """Read which images a configured dataset has.

    Raises:
        ValueError: If it cannot be read, with the reason.
    """
    own = dict(copy.deepcopy(part), pipeline=[], serialize_data=False)
    try:
        dataset = DATASETS.build(own)
    except (AssertionError, OSError, RuntimeError) as error:
        raise ValueError(
            f'the training images of the config cannot be read ({error}): is its `data_root` '
            f'{part.get("data_root")!r} right? --cfg-options data_root=... sets another one'
        ) from error
    folder, suffix = dataset.data_prefix['img_path'], dataset.img_suffix
    paths = (dataset.get_data_info(index)['img_path'] for index in range(len(dataset)))
    names = [osp.relpath(path, folder)[: -len(suffix) or None] for path in paths]
    return Images(folder, suffix, [name.replace('\\', '/') for name in names])


def choose_labeled(
    parts: Sequence[dict], images: Sequence[Images], list_path: str, list_dir: str
) -> Tuple[List[dict], List[Images]]:
    """Restrict datasets to the images of a list; those that have none of them are left out.

    Raises:
        FileNotFoundError: If there is no such list.
        ValueError: If the list is empty, or names an image that no dataset has.
    """
    lines = read_list(list_path)
    owner = {name: index for index, own in enumerate(images) for name in own.names}
    suffixes = sorted({own.suffix for own in images}, key=len, reverse=True)
    names = [_name_in(owner, line, suffixes) for line in lines]
    unknown = [line for line, name in zip(lines, names) if name is None]
    if unknown or not lines:
        what = f'{len(unknown)} of {len(lines)} lines name' if lines else 'it is empty: no line of'
        example = next(iter(owner), '')
        raise ValueError(
            f'--labeled {list_path}: {what} no training image of the config (below '
            f'{listed([own.folder for own in images])}): {listed(unknown, 3)}. Names look '
            f'like {example!r}'
        )
    chosen: Dict[int, List[str]] = {}
    for name in names:
        chosen.setdefault(owner[name], []).append(name)
    if len(parts) == 1 and names == lines:
        paths = {0: osp.abspath(list_path)}
    else:
        paths = {i: write_names(list_dir, f'labeled_{i}', chosen[i]) for i in chosen}
    own = [dict(parts[index], ann_file=paths[index]) for index in sorted(chosen)]
    return own, [images[index]._replace(names=chosen[index]) for index in sorted(chosen)]


def _name_in(known: Dict[str, int], line: str, suffixes: Sequence[str]) -> Optional[str]:
    """The name that a line of a list means, which may carry the suffix."""
    ends = (line[: -len(end)] for end in suffixes if end and line.endswith(end))
    return next((name for name in (line, *ends) if name in known), None)


def other_images(
    images: Sequence[Images], labeled: Sequence[Images], pipeline: List[dict], list_dir: str
) -> dict:
    """The source of all images that are not labeled.

    Raises:
        ValueError: If all are.
    """
    taken = {path for own in labeled for path in own.paths()}
    rest: Dict[Tuple[str, str], List[str]] = {}
    for own in images:
        names = [name for name, path in zip(own.names, own.paths()) if path not in taken]
        rest.setdefault((own.folder, own.suffix), []).extend(names)
        taken.update(own.paths())  # datasets may overlap
    sources = [
        dict(
            type='mmdmt.UnlabeledDataset',
            data_prefix=dict(img_path=osp.abspath(folder)),
            img_suffix=(suffix,),
            ann_file=write_names(list_dir, f'unlabeled_{index}', names),
            name_prefix=f'{index}/' if len(rest) > 1 else '',
            pipeline=pipeline,
        )
        for index, ((folder, suffix), names) in enumerate(rest.items())
        if names
    ]
    if not sources:
        raise ValueError('all training images are labeled: no unlabeled ones are left')
    return joined(sources)


def unlabeled_source(
    given: str, images: Sequence[Images], pipeline: List[dict], list_dir: str
) -> Tuple[dict, int]:
    """The source of the images of a folder, or of a list, that are not labeled.

    A list names images below a folder of the labeled ones, or files by their paths.

    Args:
        given (str): Path of the folder or list.
        images (Sequence[Images]): The labeled images.
        pipeline (list[dict]): Of the source.
        list_dir (str): Where lists are written.

    Returns:
        tuple[dict, int]: The source, and how many images of a folder are left out as labeled.

    Raises:
        FileNotFoundError: If ``given`` does not exist.
        ValueError: If no image is left, or a line of a list names none.
    """
    if osp.isdir(given):
        folder, files = osp.abspath(given), find_images(given)
    elif osp.isfile(given):
        folder, files = _listed_files(given, images)
    else:
        raise FileNotFoundError(f'--unlabeled {given} is neither a folder nor a list of images')
    found = len(files)
    if osp.isdir(given):  # a list that names labeled images is a mistake, which the check reports
        taken = {path for own in images for path in own.paths()}
        files = [file for file in files if osp.realpath(osp.join(folder, file)) not in taken]
    if not files:
        raise ValueError(
            f'--unlabeled {given} holds no image but labeled ones ({found} of {IMAGE_SUFFIXES})'
        )
    # Of labeled images it may be longer than that of the file: '_leftImg8bit.png'.
    ends = [own.suffix for own in images if own.suffix]
    whole = [end for end in ends if all(file.endswith(end) for file in files)]
    suffixes = tuple(whole[:1] or sorted({osp.splitext(file)[1] for file in files}))
    source = dict(
        type='mmdmt.UnlabeledDataset',
        data_prefix=dict(img_path=folder),
        img_suffix=suffixes,  # a tuple: what is set for the labeled images does not reach it
        pipeline=pipeline,
    )
    names = [file[: -len(whole[0])] if whole else osp.splitext(file)[0] for file in files]
    if osp.isfile(given) and read_list(given) == names:
        source['ann_file'] = osp.abspath(given)
    elif osp.isfile(given) or found > len(files):
        source['ann_file'] = write_names(list_dir, 'unlabeled', names)
    return source, found - len(files)


def _listed_files(path: str, images: Sequence[Images]) -> Tuple[str, List[str]]:
    """Folder and files below it that the lines of a list name."""
    lines = read_list(path)
    for folder, ends in [
        *((own.folder, ('', own.suffix)) for own in images),
        (osp.dirname(osp.abspath(path)), ('',)),
        ('.', ('',)),
    ]:
        files = [_existing(folder, line, ends) for line in lines]
        if files and all(files):
            return _common(folder, files)
        unknown = [line for line, file in zip(lines, files) if not file]
    raise ValueError(
        f'--unlabeled {path}: no files for {len(unknown)} of {len(lines)} lines: '
        f'{listed(unknown, 3)}. Lines are names below {listed([own.folder for own in images])}, '
        'with or without suffix, or paths of files'
    )


def _existing(folder: str, line: str, ends: Sequence[str]) -> Optional[str]:
    return next((line + end for end in ends if osp.isfile(osp.join(folder, line + end))), None)


def _common(folder: str, files: List[str]) -> Tuple[str, List[str]]:
    """Files below a folder, or where they lead out of it, below the folder that they share."""
    paths = [osp.abspath(osp.join(folder, file)) for file in files]
    own = osp.abspath(folder)
    if all(path.startswith(own + osp.sep) for path in paths):
        return own, files
    own = osp.commonpath([osp.dirname(path) for path in paths])
    return own, [osp.relpath(path, own) for path in paths]


def write_names(folder: str, kind: str, names: Sequence[str]) -> str:
    """Write a list into a folder and return its absolute path."""
    path = osp.abspath(osp.join(folder, f'{kind}.txt'))
    write_list(path, names)
    return path
