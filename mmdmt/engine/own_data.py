"""From a folder of images, some with masks, to a config: every choice with its reason."""

import json
import os
import os.path as osp
import runpy
import urllib.request
from pathlib import Path
from statistics import median
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner.checkpoint import get_external_models, get_mmcls_models
from PIL import Image

from mmdmt.checks import listed
from mmdmt.config import merge_options, resolve_config
from mmdmt.datasets.checks.file_facts import map_in_threads, mask_facts
from mmdmt.datasets.folders import FolderData, Part, read_folder
from mmdmt.datasets.splits.draws import draw_splits
from mmdmt.datasets.splits.files import write_list
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
    has_more: bool = False,
) -> str:
    """Write the config of a labeled-only run on a folder into the work dir.

    Methods are composed with it (:func:`mmdmt.composition.compose_method`). Lists of the labeled,
    unlabeled and validation images lie beside it, in ``lists``.

    Args:
        folder (str): Images and masks, in one of the layouts of :mod:`mmdmt.datasets.folders`.
        work_dir (str): Gets ``config.py``.
        classes (Sequence[str], optional): Names in the order of their values in the masks. Defaults
            to 'class_0', ...: one for each value that the masks have.
        labels (int, optional): Draw so many labeled images; the masks of the others are not used.
        mask_values (Sequence[int], optional): Value of each class. Defaults to those found.
        options (dict, optional): Settings that are known already, as ``--cfg-options``: what is
            chosen fits them.
        has_more (bool): Whether unlabeled images come from elsewhere.

    Returns:
        str: Path of the config.

    Raises:
        FileNotFoundError: If the folder does not exist.
        ValueError: If images and masks cannot be paired, masks and classes do not fit, or there are
            too few labeled images.
    """
    data = read_folder(folder)
    lists = osp.join(osp.abspath(work_dir), 'lists')
    chosen, parts, rest = _data_lines(data, lists, labels)
    chosen += _unlabeled_lines(data.unlabeled, parts[0], rest, lists, has_more)
    chosen += _class_lines(parts, classes, mask_values)
    base, network = _network()
    chosen += _size_lines(parts[0], base)
    text = _text(folder, base, [*network, *chosen, *_length_lines(len(parts[0].names))])
    path = osp.join(work_dir, 'config.py')
    write_text_atomically(path, text)
    batch = _fitting_batch(path, options or {})
    if batch:
        write_text_atomically(path, text + f'\n{batch}\n')
    for note in data.notes:
        _log(note)
    _log(f'the choices, each with its reason, are in {path}')
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
        settings['rampup_iters'] = (length or cfg.max_iters) // 4
    return method, settings, why


def gpu_memory() -> Optional[int]:
    """Bytes of the first GPU; None where there is none."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(0).total_memory


def _log(text: str) -> None:
    print_log(text, 'current')


def _text(folder: str, base: List[str], lines: Sequence[Line]) -> str:
    head = (
        f'# Chosen for {osp.abspath(folder)}. Change what you like, then\n'
        '#   python tools/train.py THIS_FILE --method mean_teacher\n'
    )
    bases = ''.join(f'    {path!r},\n' for path in base)
    model = (
        'model = dict(\n    data_preprocessor=dict(size=crop_size), '
        'decode_head=dict(num_classes=num_classes)\n)\n'
    )
    return f'{head}_base_ = [\n{bases}]\n\n' + '\n'.join(map(str, lines)) + f'\n{model}'


# -------------------------------------------------------------------------------------- the data


def _data_lines(
    data: FolderData, lists: str, labels: Optional[int]
) -> Tuple[List[Line], Tuple[Part, Part], List[str]]:
    """Lists and folders; also the labeled and the validation part, and who is in neither."""
    labeled, val, why = data.labeled, data.val, 'the validation part of the folder'
    masked = len(labeled.names)
    if val is None:
        count = max(1, round(0.2 * masked))
        if masked - count < max(labels or 1, 1):
            raise ValueError(
                f'{masked} images have masks: with {count} of them for validation, which has no '
                f'part of its own, no {labels or 1} are left to train on. Lower --labels or add '
                'masks'
            )
        drawn, rest = draw_splits(labeled.names, {'val': count})[('val', 0)]
        val, labeled = labeled._replace(names=drawn), labeled._replace(names=rest)
        why = f'there is no validation part: {count} of {masked} images with masks were drawn'
    rest = []
    what = f'all images with masks that do not validate: {len(labeled.names)}'
    if labels is not None:
        if not 0 < labels <= len(labeled.names):
            raise ValueError(
                f'--labels {labels}: {len(labeled.names)} images have masks to train on'
            )
        drawn, rest = draw_splits(labeled.names, {'labels': labels})[('labels', 0)]
        what = f'{labels} drawn of {len(labeled.names)} images with masks'
        labeled = labeled._replace(names=drawn)
    found = [
        Line('img_suffix', labeled.img_suffix),
        Line('seg_map_suffix', labeled.seg_map_suffix),
        Line('labeled_folders', dict(img_path=labeled.images, seg_map_path=labeled.masks)),
        Line('labeled_list', _write(lists, 'labeled', labeled.names), what),
        Line('val_folders', dict(img_path=val.images, seg_map_path=val.masks)),
        Line('val_list', _write(lists, 'val', val.names), why),
    ]
    return found, (labeled, val), rest


def _unlabeled_lines(
    own: Optional[Part], labeled: Part, rest: List[str], lists: str, has_more: bool
) -> List[Line]:
    """Images without masks, and those whose masks are not used."""
    paths = [osp.join(labeled.images, name) for name in rest]
    paths += [osp.join(own.images, name) for name in own.names] if own else []
    if not paths and has_more:
        return []
    if not paths:
        raise ValueError(
            'every training image has a mask, so that there is nothing to learn from without one: '
            '--labels N draws N labeled ones, --unlabeled FOLDER names others'
        )
    below = labeled.images if not own else own.images if not rest else None
    root = below or osp.commonpath([labeled.images, own.images])
    names = sorted(osp.relpath(path, root) for path in paths)
    why = f'{len(names)} images without masks'
    if rest:
        why += f', {len(rest)} of them with masks that are not used'
    return [
        Line('unlabeled_folders', dict(img_path=root)),
        Line('unlabeled_list', _write(lists, 'unlabeled', names), why),
    ]


def _write(lists: str, kind: str, names: Sequence[str]) -> str:
    path = osp.join(lists, f'{kind}.txt')
    write_list(path, sorted(names))
    return path


def _class_lines(
    parts: Sequence[Part], classes: Optional[Sequence[str]], values: Optional[Sequence[int]]
) -> List[Line]:
    """Names of the classes, and which value of the masks is which class."""
    found = _values_of([path for part in parts for path in part.mask_paths()])
    names = list(classes or ())
    values = list(values or _class_values(found, len(names)))
    names = names or [f'class_{value}' for value in values]
    other = sorted(set(found) - {*values, VOID})
    if len(values) != len(names) or other or len(names) < 2:
        raise ValueError(
            f'the masks hold the values {listed(list(map(str, found)))}, but there are '
            f'{len(names)} classes {names}: name one class for each value (--classes), in '
            'ascending order, or say which value each class has (--mask-values 0 255)'
        )
    mapping: Dict[int, Optional[str]] = dict(zip(values, names))
    void = VOID in found and VOID not in mapping
    if values == list(range(len(values))):
        mapping = {}
    elif void:
        mapping[VOID] = None
    why = f'the masks hold the values {found}' + (', of which 255 is not learned' if void else '')
    lines = [Line('num_classes', len(names)), Line('metainfo', dict(classes=names), why)]
    return [*lines, Line('mask_values', mapping)] if mapping else lines


def _class_values(found: Sequence[int], count: int) -> List[int]:
    """The values of ``count`` classes, or of as many as there seem to be."""
    plain = [value for value in found if value != VOID]
    if len(found) == 2 and count in (0, 2) and (VOID in found or found[1] > 1):
        return list(found)  # 0 and 255: two classes, not one and void
    ids = bool(plain) and plain[-1] < (count or len(plain))
    return (
        list(range(count or len(plain))) if ids else plain if len(plain) == count else list(found)
    )


def _values_of(paths: Sequence[str]) -> List[int]:
    """All values of some masks, ascending.

    Raises:
        ValueError: If a mask cannot be read or has no values but colors, naming the file.
    """

    def values(path: str) -> Sequence[int]:
        try:
            return mask_facts(path).ids or ()
        except Exception as error:  # Pillow raises nearly anything on broken files
            raise ValueError(f'mask {path} cannot be read: {error}') from error

    chosen = paths[:: max(1, len(paths) // _MOST_READ)]
    found = map_in_threads(values, chosen, 'reading masks', None, progress=False)
    return sorted({int(value) for each in found for value in each})


# -------------------------------------------------------------------------- network and schedule


def _network() -> Tuple[List[str], List[Line]]:
    """Base configs, and which weights the network begins with."""
    on_gpu = gpu_memory() is not None
    name = 'deeplabv3plus_r50-d16' if on_gpu else 'deeplabv3plus_mobilenetv2-d16'
    weights = 'open-mmlab://resnet50_v1c' if on_gpu else 'mmcls://mobilenet_v2'
    where = where_weights_are(weights)
    if where:
        why = f'pretrained weights: {where}'
        lines = []
    else:
        name, on = 'fcn_unet-s2', 'a small U-Net, which learns from scratch'
        why = f'{on}: {weights} is not on this machine and cannot be downloaded'
        _log(
            f'no pretrained weights ({weights}): {on}. Where there is a network results are better'
        )
        lines = []
    schedule = 'schedule_20k_sgd' if on_gpu and where else 'schedule_cpu_adamw'
    base = shipped_dir('configs') / '_base_'
    files = [
        f'models/{name}.py', 'datasets/folder.py', f'schedules/{schedule}.py', 'default_runtime.py'
    ]  # fmt: skip
    lines.append(Line('network', name, why))
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


def _size_lines(part: Part, base: List[str]) -> List[Line]:
    """Size that images are brought to, and of crops."""
    paths = part.image_paths()
    chosen = paths[:: max(1, len(paths) // _MOST_READ)]
    sizes = map_in_threads(_size_of, chosen, 'reading sizes', None, progress=False)
    longer, shorter = (int(median(f(size) for size in sizes)) for f in (max, min))
    most = 128 if gpu_memory() is None else 512
    scale = min(1.0, most / shorter)
    size = (round(longer * scale), round(shorter * scale))
    crop = max(32, size[1] // 32 * 32)
    where = 'a GPU' if most == 512 else 'a CPU'
    whole = f'images have about {longer} x {shorter} pixels'
    how = whole if scale == 1 else f'{whole}: the shorter side becomes {most}, for {where}'
    return [
        Line('image_size', size, how),
        Line('crop_size', (crop, crop), 'a square of the shorter side, a multiple of 32'),
    ]


def _size_of(path: str) -> Tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:  # Pillow raises nearly anything on broken files
        raise ValueError(f'image {path} cannot be read: {error}') from error


def _length_lines(labels: int) -> List[Line]:
    """Steps and batch."""
    if gpu_memory() is not None:
        steps, batch = (8000 if labels < 100 else 20000), 16
        why = f'{labels} labels; the published lengths are those of thousands'
    else:
        steps, batch, why = 600, 8, 'a first result on a CPU; more steps are better'
    return [
        Line('max_iters', steps, why),
        Line('batch_size', batch, 'labeled and unlabeled images together'),
        Line('train_cfg', dict(val_interval=max(1, steps // 4)), 'validated four times'),
        Line('default_hooks', dict(checkpoint=dict(interval=max(1, steps // 4)))),
        Line('train_dataloader', dict(num_workers=min(4, os.cpu_count() or 1))),
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


# ------------------------------------------------------------------------------------ the result


def summary(runs: Dict[str, str]) -> str:
    """A table of the final metrics of some work dirs, by name, and how to predict with the last."""
    rows = []
    for name, work_dir in runs.items():
        path = Path(work_dir) / 'final.json'
        final = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
        numbers = {k: v for k, v in final.get('metrics', {}).items() if isinstance(v, (int, float))}
        shown = [f'{key} {numbers[key]:.2f}' for key in ('mIoU', 'mAcc', 'aAcc') if key in numbers]
        rows.append(f'  {name:<16} {"  ".join(shown) or "no final.json"}')
    last = list(runs.values())[-1]
    command = f'python tools/predict.py {last} FOLDER_OF_IMAGES --out predictions'
    return '\n'.join(['On the validation images:', *rows, f'Predict with\n  {command}'])


def write_report_of(runs: Dict[str, str], path: str) -> str:
    """Write the report of some work dirs, by name; say where it is, or why there is none."""
    try:
        from mmdmt.evaluation.report import write_report  # needs optional packages
    except ImportError as error:
        return f'No report ({error}): pip install mmdmt[optional]'
    write_report([f'{name}={work_dir}' for name, work_dir in runs.items()], path)
    return f'Report: {path}'
