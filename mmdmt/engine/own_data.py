"""From a folder of images, some with masks, to a config: every choice with its reason."""

import ast
import os
import os.path as osp
import runpy
import sys
import urllib.request
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import get_external_models, get_mmcls_models

from mmdmt.checks import listed
from mmdmt.config import merge_options, resolve_config
from mmdmt.datasets.checks.file_facts import (
    FileFacts,
    ImageRules,
    MaskModeError,
    bands_facts,
    color_facts,
    image_facts,
    map_in_threads,
    mask_facts,
)
from mmdmt.datasets.derivation import write_names
from mmdmt.datasets.folders import (
    FolderData,
    Layout,
    cases_of,
    find_images,
    layout_of,
    read_folder,
)
from mmdmt.datasets.mask_values import MaskValues, is_lossy, unpack_color
from mmdmt.datasets.rasters import raster_info
from mmdmt.datasets.splits.draws import draw_splits
from mmdmt.datasets.statistics import config_lines
from mmdmt.files import shipped_dir, write_text_atomically

VOID = 255
_MOST_READ = 500  # images and masks that choices are made from
_MEMORY_SHARE = 0.4  # for labeled images alone: methods need up to twice as much, CUDA some besides
_WAIT = 5  # seconds for an answer of the server of pretrained weights
# Of methods whose published settings are for thousands of labels, as in their leaf for folders.
_FEW_LABELS = dict(
    dual_teacher={'shift_length': 100},
    cross_teacher={'contrast.start': 0.5},
    dmt={'pseudo_loss.gamma1': 1.0, 'pseudo_loss.gamma2': 1.0, 'ensemble': True},
)
# An average over hundreds of steps is that of a beginner for a third of a run of so many.
_SHORT = 2000
_SHORT_MEAN_TEACHER = {'ema.momentum': 0.95, 'threshold': 0.9}  # measured: docs/own_data.md


class Line(NamedTuple):
    """A line of the config: a setting, its value, and why it has that value."""

    name: str
    value: Any
    why: str = ''

    def __str__(self) -> str:
        text = f'{self.name} = {self.value!r}'
        return f'# {self.why[:1].upper()}{self.why[1:]}.\n{text}' if self.why else text


def config_of_folder(
    folder: str,
    work_dir: str,
    classes: Optional[Sequence[str]] = None,
    labels: Optional[int] = None,
    mask_values: Optional[Sequence[int]] = None,
    options: Optional[Dict[str, Any]] = None,
    unlabeled: Optional[str] = None,
    labels_alone: bool = False,
) -> str:
    """Write the config of a labeled-only run on a folder into the work dir.

    Methods are composed with it (:func:`mmdmt.composition.compose_method`). Lists of the labeled,
    unlabeled and validation images lie beside it, in ``lists``.

    Args:
        folder (str): Images and masks, in the layouts of :mod:`mmdmt.datasets.folders`.
        work_dir (str): Gets ``config.py``.
        classes (Sequence[str], optional): Names in the order of their values in the masks. Defaults
            to 'class_0', ...: one for each value that the masks have.
        labels (int, optional): Draw so many labeled images; the masks of the others are not used.
        mask_values (Sequence, optional): Number or color of each class. Defaults to those found.
        options (dict, optional): Settings that are known already, as ``--cfg-options``: what is
            chosen fits them.
        unlabeled (str, optional): Folder of more images without masks.
        labels_alone (bool): Whether no unlabeled images are needed.

    Returns:
        str: Path of the config.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If images and masks cannot be paired, masks and classes do not fit, or there are
            too few labeled images.
    """
    data = read_folder(folder)
    lists = osp.join(osp.abspath(work_dir), 'lists')
    data, lines = _data_lines(data, lists, labels, unlabeled)
    if not data.unlabeled and not labels_alone:
        raise ValueError(
            'every training image has a mask, so that there is nothing to learn from without one: '
            '--labels N draws N labeled ones, --unlabeled FOLDER names others'
        )
    pairs = [(osp.join(data.root, a), osp.join(data.root, b)) for a, b in data.pairs().items()]
    lines += _class_lines([mask for _, mask in pairs], classes, mask_values)
    images, bands = _image_lines([*(image for image, _ in pairs), *data.unlabeled])
    base, network = _network(bands)
    text = _text(folder, base, [*network, *lines, *images, *_length_lines(len(data.labeled))])
    path = osp.join(work_dir, 'config.py')
    write_text_atomically(path, text)
    batch = _fitting_batch(path, options or {})
    if batch:
        write_text_atomically(path, text + f'\n{batch}\n')
    names = Config.fromfile(path).metainfo.classes
    counts = [f'{len(getattr(data, part))} {part}' for part in ('labeled', 'unlabeled', 'val')]
    for note in [*data.notes, f'images: {", ".join(counts)}; classes: {", ".join(names)}']:
        _say(note)
    _say(f'the choices, each with its reason, are in {path}')
    return path


def method_of_folder(
    config: str, method: str = 'auto', length: Optional[int] = None
) -> Tuple[str, Dict[str, Any], str]:
    """A method for a config by :func:`config_of_folder`: its name, its settings, and why it.

    ``length`` is that of the run in steps, where it is not that of the config.
    """
    cfg = Config.fromfile(config)
    why = 'as --method says'
    if method == 'auto':
        on_gpu, two = gpu_memory() is not None, cfg.num_classes == 2
        method = 'unimatch' if on_gpu and not two else 'mean_teacher'
        why = 'it does well with two classes' if two else 'it takes one pass with gradient a step'
        why = why if method == 'mean_teacher' else 'a CNN on a GPU'
    settings = dict(_FEW_LABELS.get(method.replace('-', '_'), {}))
    if method.replace('-', '_') == 'mean_teacher':
        steps = length or cfg.max_iters
        settings['rampup_iters'] = steps // 4
        if steps < _SHORT:
            settings.update(_SHORT_MEAN_TEACHER)
    return method, settings, why


def gpu_memory() -> Optional[int]:
    """Bytes of the first GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory


def _say(text: str) -> None:
    if int(os.environ.get('RANK', 0)) == 0:  # there is no log yet, and stdout is for --print-config
        print(text, file=sys.stderr)


def _text(folder: str, base: List[str], lines: Sequence[Line]) -> str:
    head = (
        f'# Chosen for {osp.abspath(folder)}. Change what you like, then\n'
        '#   python tools/train.py THIS_FILE --method mean_teacher\n'
    )
    bases = ''.join(f'    {path!r},\n' for path in base)
    model = (
        'model = dict(\n    data_preprocessor=dict(size=crop_size, **normalization), '
        'backbone=backbone,\n    decode_head=dict(num_classes=num_classes),\n)\n'
    )
    return f'{head}_base_ = [\n{bases}]\n\n' + '\n'.join(map(str, lines)) + f'\n{model}'


# -------------------------------------------------------------------------------------- the data


def _with_validation(data: FolderData, least: int) -> Tuple[FolderData, str]:
    """The same with a validation part, drawn if there is none, and why it is what it is.

    Whole cases are drawn; what they have without masks is not trained on either.

    Raises:
        ValueError: If fewer than ``least`` images are left to train on.
    """
    if data.val:
        return data, 'the validation part of the folder'
    masked = len(data.labeled)
    case_of = cases_of([*data.labeled, *data.unlabeled])
    cases: Dict[str, List[str]] = {}
    for image in data.labeled:
        cases.setdefault(case_of[image], []).append(image)
    order, _ = draw_splits(cases, {'all': len(cases)})['all', 0]
    count = max(1, round(0.2 * masked), min(map(len, cases.values())))
    drawn, val = set(), []
    for case in order:
        if len(val) + len(cases[case]) <= count:
            drawn.add(case)
            val += cases[case]
    if masked - len(val) < max(least, 1):
        raise ValueError(
            f'{masked} images have masks: with {len(val)} of them for validation, which has no '
            f'part of its own, no {least} are left to train on. Lower --labels or add masks'
        )
    why = f'there is no validation part: {len(val)} of {masked} images with masks were drawn'
    unlabeled = [image for image in data.unlabeled if case_of[image] not in drawn]
    whole = sorted(drawn - set(val))
    if whole:
        left_out = len(data.unlabeled) - len(unlabeled)
        why += f', all of {len(whole)} of {len(cases)} folders: {listed(whole)}'
        why += f'; {left_out} images there without masks are left out' if left_out else ''
        _say(f'{why}. Images of a case would be too much alike to validate on')
    labeled = {image: mask for image, mask in data.labeled.items() if image not in set(val)}
    chosen = {image: data.labeled[image] for image in sorted(val)}
    return data._replace(labeled=labeled, unlabeled=unlabeled, val=chosen), why


def _data_lines(
    data: FolderData, lists: str, labels: Optional[int], more: Optional[str]
) -> Tuple[FolderData, List[Line]]:
    """The images that are used, unlabeled ones by absolute paths, and their lists and folders."""
    data, why = _with_validation(data, labels or 1)
    what = f'all images with masks that do not validate: {len(data.labeled)}'
    images = [osp.join(data.root, image) for image in data.unlabeled]
    if labels is not None:
        if not 0 < labels <= len(data.labeled):
            raise ValueError(
                f'--labels {labels}: {len(data.labeled)} images have masks to train on'
            )
        drawn, rest = draw_splits(data.labeled, {'labels': labels})['labels', 0]
        what = f'{labels} drawn of {len(data.labeled)} images with masks'
        data = data._replace(labeled={image: data.labeled[image] for image in drawn})
        images += [osp.join(data.root, image) for image in rest]
    used = {osp.realpath(osp.join(data.root, each)) for each in (*data.labeled, *data.val)}
    if more:
        found = (osp.join(osp.abspath(more), image) for image in find_images(more))
        images += [path for path in found if osp.realpath(path) not in used]
    images = list(dict.fromkeys(images))
    parts = dict(labeled=data.labeled, val=data.val)
    layouts = {kind: layout_of(pairs) for kind, pairs in parts.items()}
    ends = {each and each[2:] for each in layouts.values()}
    alike = len(ends) == 1 and None not in ends
    if not alike or not all(path.endswith(layouts['val'].img_suffix) for path in images):
        layouts = dict.fromkeys(parts, Layout('', '', '', ''))
        why_so = 'images and masks lie or are named in several ways'
        lines = [Line('dataset_type', 'mmdmt.FolderDataset', why_so)]
    else:
        lines = []
    layout = layouts['labeled']
    lines += [Line(key, getattr(layout, key)) for key in ('img_suffix', 'seg_map_suffix')]
    for kind, reason in (('labeled', what), ('val', why)):
        places = (osp.normpath(osp.join(data.root, each)) for each in layouts[kind][:2])
        names = sorted(layouts[kind].names(parts[kind]))
        lines.append(Line(f'{kind}_folders', dict(zip(('img_path', 'seg_map_path'), places))))
        lines.append(Line(f'{kind}_list', write_names(lists, kind, names), reason))
    lines += _unlabeled_lines(images, layout.img_suffix, lists)
    return data._replace(unlabeled=images), lines


def _unlabeled_lines(images: Sequence[str], suffix: str, lists: str) -> List[Line]:
    """Images without masks, or whose masks are not used; paths that end with a suffix."""
    if not images:
        return []
    root = osp.commonpath([osp.dirname(path) for path in images])
    names = [osp.relpath(path, root)[: -len(suffix) or None] for path in images]
    why = f'{len(images)} images without masks, or whose masks are not used'
    return [
        Line('unlabeled_folders', dict(img_path=root)),
        Line('unlabeled_list', write_names(lists, 'unlabeled', sorted(names)), why),
    ]


def _class_lines(
    paths: Sequence[str], classes: Optional[Sequence[str]], given: Optional[Sequence]
) -> List[Line]:
    """Names of the classes, and which value of the masks is which class."""
    files, blurred = _values_of(paths)
    colors = isinstance(next(iter(files), 0), tuple)
    numbers = sorted({v[0] if colors else v for v in files if not colors or len(set(v)) == 1})
    names = list(classes or ())

    def key(number: int) -> Any:
        return (number,) * 3 if colors else number

    if given:
        parsed = MaskValues.parse(given)
        values = [unpack_color(v) if parsed.colors else key(v) for v in parsed.ids]
    elif len(numbers) == len(files):
        values = [key(v) for v in _class_values(numbers, len(names), blurred)]
    else:  # which color is which class cannot be told, but that black comes first
        values = sorted(files) if len(files) == 2 and numbers == [0] else []
    names = names or [f'class_{v[0] if colors else v}' for v in values]
    other = [] if blurred else sorted(set(files) - {*values, key(VOID)})
    shown = numbers if len(numbers) == len(files) else sorted(files)
    why = f'the masks hold the values {listed(list(map(str, shown)))}'
    why += ', blurred by JPEG: each is taken for the nearest class' if blurred else ''
    if len(values) != len(names) or other or len(names) < 2:
        one = next(iter(other), max(files))
        smooth = 'So many values come from smoothing or JPEG: make such masks again. '
        raise ValueError(
            f'{why} ({one} is in {files[one]}), but there are {len(names)} classes {names}. '
            f'{smooth if len(files) > 2 * max(2, len(names)) else ""}Name one class for each value '
            '(--classes), in ascending order, or say which value, or color, each class has: '
            f'--mask-values {"0,0,0 255,0,0" if shown is not numbers else "0 255"}'
        )
    mapping: Dict[Any, Optional[str]] = dict(zip(values, names))
    if values == list(range(len(values))):
        mapping = {}
    elif key(VOID) in files and not blurred:
        mapping.setdefault(key(VOID), None)
    void = key(VOID) in files and key(VOID) not in values and not blurred
    why += ', of which 255 is not learned' if void else ''
    lines = [Line('num_classes', len(names)), Line('metainfo', dict(classes=names), why)]
    return [*lines, Line('mask_values', mapping)] if mapping else lines


def _class_values(found: Sequence[int], count: int, blurred: bool) -> List[int]:
    """The values of ``count`` classes, or of as many as there seem to be."""
    if blurred and count in (0, 2):
        return [found[0], found[-1]]
    plain = [value for value in found if value != VOID]
    if len(found) == 2 and count in (0, 2) and (VOID in found or found[1] > 1):
        return list(found)  # 0 and 255: two classes, not one and void
    ids = len(plain) > 1 and plain[-1] < (count or len(plain))
    return (
        list(range(count or len(plain))) if ids else plain if len(plain) == count else list(found)
    )


def _values_of(paths: Sequence[str]) -> Tuple[Dict[Any, str], bool]:
    """All values of some masks, each with a mask that has it, and whether any mask is JPEG.

    Values are numbers, or, if a mask has several channels, colors.

    Raises:
        ValueError: If a mask cannot be read, naming the file.
    """

    def values(path: str, read: Callable = mask_facts) -> Optional[Sequence[int]]:
        try:
            return read(path).ids
        except MaskModeError:
            return None
        except Exception as error:  # Pillow raises nearly anything on broken files
            raise ValueError(f'mask {path} cannot be read: {error}') from error

    chosen = paths[:: max(1, len(paths) // _MOST_READ)]
    read = partial(map_in_threads, items=chosen, title='reading masks', progress=False)
    found, key = read(values), int
    if None in found:
        found, key = read(partial(values, read=color_facts)), unpack_color
    files = {key(value): path for path, ids in zip(chosen, found) for value in ids or ()}
    return files, any(map(is_lossy, chosen))


# -------------------------------------------------------------------------- network and schedule


def _network(bands: int) -> Tuple[List[str], List[Line]]:
    """Base configs, and which weights the network begins with."""
    on_gpu = gpu_memory() is not None
    name = 'deeplabv3plus_r50-d16' if on_gpu else 'deeplabv3plus_mobilenetv2-d16'
    weights = 'open-mmlab://resnet50_v1c' if on_gpu else 'mmcls://mobilenet_v2'
    where = where_weights_are(weights)
    if where and (on_gpu or bands == 3):
        why = f'pretrained weights: {where}'
    else:
        name, on = 'fcn_unet-s2', 'a small U-Net, which learns from scratch'
        why = f'{on}: {weights} is not on this machine and cannot be downloaded'
        why = why if not where else f'{on}: MobileNetV2 takes 3 bands, images have {bands}'
        _say(f'no pretrained weights: {why}')
    schedule = 'schedule_20k_sgd' if on_gpu and where else 'schedule_cpu_adamw'
    base = shipped_dir('configs') / '_base_'
    files = [
        f'models/{name}.py', 'datasets/folder.py', f'schedules/{schedule}.py', 'default_runtime.py'
    ]  # fmt: skip
    lines = [Line('network', name, why)]
    lines.append(Line('backbone', {} if bands == 3 else dict(in_channels=bands)))
    if bands != 3 and name.endswith('r50-d16'):
        lines.append(Line('widen_input', 'repeat', 'the weights are those of 3 bands'))
    if schedule == 'schedule_20k_sgd':
        lines.append(Line('optim_wrapper', dict(optimizer=dict(lr=0.02))))
    return [str(base / file) for file in files], lines


def where_weights_are(name: str) -> str:
    """Where pretrained weights of mmengine's hubs can be had: a file or a server; '' if nowhere."""
    scheme, _, key = name.partition('://')
    url = (get_mmcls_models() if scheme == 'mmcls' else get_external_models()).get(key, '')
    if isinstance(url, (list, tuple)):
        url = url[0]
    cached = Path(torch.hub.get_dir()) / 'checkpoints' / osp.basename(str(url))
    if url and cached.is_file():
        return str(cached)
    try:
        request = urllib.request.Request(str(url), method='HEAD')
        with urllib.request.urlopen(request, timeout=_WAIT):
            return str(url)
    except (OSError, ValueError):
        return ''


def _image_lines(paths: Sequence[str]) -> Tuple[List[Line], int]:
    """How images are loaded, the size that they are brought to and of crops; also their bands."""
    chosen = paths[:: max(1, len(paths) // _MOST_READ)]
    facts = map_in_threads(_facts_of, chosen, 'reading sizes', None, progress=False)
    sizes = [(each.width, each.height) for each in facts]
    longer, shorter = (int(median(f(size) for size in sizes)) for f in (max, min))
    most = 128 if gpu_memory() is None else 512
    scale = min(1.0, most / shorter)
    size = (round(longer * scale), round(shorter * scale))
    crop = max(32, size[1] // 32 * 32)
    where = 'a GPU' if most == 512 else 'a CPU'
    whole = f'images have about {longer} x {shorter} pixels'
    how = whole if scale == 1 else f'{whole}: the shorter side becomes {most}, for {where}'
    lines = [
        Line('image_size', size, how),
        Line('crop_size', (crop, crop), 'a square of the shorter side, a multiple of 32'),
    ]
    odd = [path for path, each in zip(chosen, facts) if ImageRules().refusal(each)]
    if not odd:
        return [*lines, Line('normalization', {})], 3
    why = f'{odd[0]} is no 8-bit image of gray or colors: all bands are loaded as they are'
    normalization, bands = _statistics(chosen)
    load = Line('image_loader', dict(_delete_=True, type='mmdmt.LoadBands'), why)
    return [*lines, load, Line('normalization', normalization, 'of the images')], bands


def _statistics(paths: Sequence[str]) -> Tuple[Dict[str, Any], int]:
    """Settings of the preprocessor for images of any bands, and how many bands they have.

    Raises:
        ValueError: If they differ in that, naming two.
    """
    by_count = {raster_info(path).bands: path for path in paths}
    if len(by_count) > 1:
        found = [f'{path} has {count}' for count, path in sorted(by_count.items())]
        raise ValueError(
            f'images differ in their number of bands: {listed(found)}. Bring all to the same'
        )
    tool = runpy.run_path(str(shipped_dir('tools') / 'misc' / 'dataset_statistics.py'))
    statistics = tool['measure'](tool['Inputs'](paths, [], (), None, None))
    found = {key: ast.literal_eval(text) for key, text in config_lines(statistics, 0.01).items()}
    return dict(found, bgr_to_rgb=False), next(iter(by_count))


def _facts_of(path: str) -> FileFacts:
    try:
        return (bands_facts if path.lower().endswith('.npy') else image_facts)(path, decode=False)
    except Exception as error:  # Pillow raises nearly anything on broken files
        raise ValueError(f'image {path} cannot be read: {error}') from error


def _length_lines(labels: int) -> List[Line]:
    """Steps and batch."""
    if gpu_memory() is not None:
        steps, batch = (8000 if labels < 100 else 20000), 16
        why = f'{labels} labels; the published lengths are those of thousands'
    else:
        steps, batch, why = 600, 8, 'a first result on a CPU; more steps are better'
    workers = min(4, len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else 2)
    return [
        Line('max_iters', steps, why),
        Line('batch_size', batch, 'labeled and unlabeled images together'),
        Line('train_cfg', dict(val_interval=max(1, steps // 4)), 'validated four times'),
        Line('default_hooks', dict(checkpoint=dict(interval=max(1, steps // 4)))),
        *(
            Line(f'{part}_dataloader', dict(num_workers=workers))
            for part in ('train', 'val', 'test')
        ),
    ]


def _fitting_batch(config: str, options: Dict[str, Any]) -> Optional[Line]:
    """A smaller batch, where the one of the config does not fit into the GPU."""
    memory = gpu_memory()
    if memory is None:
        return None
    tool = shipped_dir('tools') / 'analysis_tools' / 'estimate_memory.py'
    cfg = Config.fromfile(config)
    merge_options(cfg, {key: options[key] for key in options if key in cfg})
    wanted, crop = cfg.batch_size, cfg.crop_size  # which resolving takes away
    estimator = runpy.run_path(str(tool))['Estimator'](resolve_config(cfg))
    largest = estimator.largest_batch(_MEMORY_SHARE * memory)
    if largest >= wanted:
        return None
    if largest < 2:
        raise ValueError(
            f'a batch of two crops of {crop} does not fit into {memory / 2**30:.0f} GiB: '
            'set a smaller one, --cfg-options crop_size=(256,256)'
        )
    return Line('batch_size', largest, f'more does not fit into {memory / 2**30:.0f} GiB')
