"""Composing a semi-supervised method with any config of mmseg.

What a leaf of ``configs/`` says in six lines, for a config that has never heard of this package:
the segmentor is wrapped, unlabeled images join the labeled ones, hooks, sampler, runner and
validation are those of the shipped configs.
"""

import copy
import math
import os
import os.path as osp
from typing import Any, Dict, List, Optional, Sequence, Tuple

from mmengine.config import Config, ConfigDict
from mmengine.logging import print_log
from mmengine.registry import DefaultScope

from mmdmt.checks import meant
from mmdmt.config import KEPT_KEYS, merge_options, note_settings, resolve_config, schedulers_of
from mmdmt.datasets.derivation import (
    Images,
    choose_labeled,
    images_of,
    innermost,
    joined,
    other_images,
    pack_for_semi,
    unlabeled_pipeline,
    unlabeled_source,
)
from mmdmt.datasets.splits.files import read_list
from mmdmt.files import shipped_dir
from mmdmt.models.forward import is_dense_classifier
from mmdmt.registry import MODELS, class_of

SUPERVISED = 'supervised'
#: Other names of methods, beside those with '-' for '_'.
ALIASES = {
    'labeled_only': SUPERVISED,
    'self_training': 'st',
    'st++': 'st_plus_plus',
    'dynamic_mutual_training': 'dmt',
}
# Bases of published protocols, which fix data and lengths.
_PROTOCOLS = ('dmt_published', 'dmt_shift', 'dmt_subsets')
_MASK_HEADS = ('MaskFormerHead', 'Mask2FormerHead', 'SideAdapterCLIPHead')
_LAYER_CONSTRUCTORS = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
)


def method_names() -> List[str]:
    """Names of all methods that can be composed; 'supervised' is labeled images alone."""
    folder = shipped_dir('configs') / '_base_' / 'methods'
    names = (path.stem for path in folder.glob('*.py'))
    return [SUPERVISED, *sorted(name for name in names if name not in _PROTOCOLS)]


def method_settings(method: str) -> Dict[str, Any]:
    """The keys of a method's base config: ``method`` of an online one, ``mutual`` of others.

    Raises:
        ValueError: If there is no such method; the message has all names.
    """
    name = _canonical(method)
    if name == SUPERVISED:
        return {}
    base = Config.fromfile(shipped_dir('configs') / '_base_' / 'methods' / f'{name}.py')
    return {key: base[key].to_dict() for key in ('method', 'mutual') if key in base}


def _canonical(method: str) -> str:
    name = str(method).lower().replace('-', '_')
    name = ALIASES.get(name, name)
    if name not in method_names():
        raise ValueError(
            f'there is no method {method!r}{meant(name, method_names(), 0.6)}; there are '
            f'{method_names()}'
        )
    return name


def compose_method(
    cfg: Config,
    method: str,
    unlabeled: Optional[str] = None,
    labeled: Optional[str] = None,
    *,
    method_options: Optional[Dict[str, Any]] = None,
    options: Optional[Dict[str, Any]] = None,
    list_dir: Optional[str] = None,
) -> Config:
    """Compose a method with the config of a labeled-only run, of mmseg or of this package.

    The training set of the config is the labeled part, or what a list names of it. What is changed
    on the way is logged. The result is like an unresolved config of ``configs/``: settings such as
    ``max_iters``, ``batch_size``, ``source_ratio`` and ``crop_size`` may still be set at the top,
    and :func:`~mmdmt.config.resolve_config`, or the runner, puts them into their places.

    Args:
        cfg (Config): Left as it is.
        method (str): One of :func:`method_names`; 'supervised' trains on the labeled images alone,
            for as many steps.
        unlabeled (str, optional): Folder of images, or list of names below the folder of training
            images, or of files. Defaults to the training images that ``labeled`` does not name.
        labeled (str, optional): List of the labeled ones among the training images of the config.
            Defaults to all of them.
        method_options (dict, optional): Settings of the method by name, with dots inside them.
        options (dict, optional): As ``--cfg-options``: keys that are in ``cfg``, settings, and keys
            of the composed config, such as ``model.threshold``.
        list_dir (str, optional): Where lists that have to be made are written. Defaults to
            ``lists`` in the work dir.

    Returns:
        Config: With ``runner_type`` 'mmdmt.SemiRunner' or 'mmdmt.MutualTrainingRunner'.

    Raises:
        ValueError: If the method and the config do not fit, with the reason.
        FileNotFoundError: If a folder or list does not exist.
    """
    name, settings = _canonical(method), method_settings(method)
    cfg = copy.deepcopy(cfg)
    _refuse_composed(cfg)
    list_dir = list_dir or osp.join(cfg.get('work_dir') or 'work_dirs/composed', 'lists')
    options = dict(options or {})
    ours = bool(cfg.get('settings')) and _kind(cfg.train_dataloader.dataset) == 'SemiDataset'
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        if ours:
            own = {key: value for key, value in options.items() if _is_in(cfg, key)}
            merge_options(cfg, own)
            _set_lists(cfg, unlabeled, labeled, list_dir)
        else:
            pipeline = cfg.get('unlabeled_pipeline')
            own = _merge_known(cfg, options)
            cfg = _semi_config(cfg, settings, (unlabeled, labeled), pipeline, list_dir)
        _refuse_model(cfg, settings)
    rest = {key: value for key, value in options.items() if key not in own}
    late = {key for key in rest if key.split('.')[0] in ('model', 'mutual')}
    merge_options(cfg, {key: value for key, value in rest.items() if key not in late})
    if name != SUPERVISED:
        chosen = {*own, *rest}
        _set_batch(cfg, settings.get('mutual'), ours, chosen)
        _set_method(cfg, settings, dict(method_options or {}))
    elif method_options:
        raise ValueError(f'labeled-only training has no settings {sorted(method_options)}')
    merge_options(cfg, {key: rest[key] for key in rest if key in late})
    return cfg


def _log(text: str) -> None:
    print_log(f'composing: {text}', 'current')


def _kind(part: Any) -> str:
    """Type of a part of a config, without its prefix."""
    kind = part.get('type') if isinstance(part, dict) else part
    return getattr(kind, '__name__', str(kind).split('.')[-1])


def _is_in(cfg: Config, option: str) -> bool:
    """Whether a config has the place that an option sets, or, deep inside, what it is a key of."""
    node: Any = cfg
    steps = option.split('.')
    # `model.threshold` is a new key of the composed model, `model.backbone.depth` of its backbone.
    for step in steps if len(steps) < 3 else steps[:-1]:
        if isinstance(node, (list, tuple)) and step.lstrip('-').isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, (dict, Config)) and step in node:
            node = node[step]
        else:
            return False
    return True


def _merge_known(cfg: Config, options: Dict[str, Any]) -> Dict[str, Any]:
    """Merge the options whose place a plain config has, and its settings; return them."""
    note_settings(cfg, _noted())
    own = {key: value for key, value in options.items() if _is_in(cfg, key)}
    read = {*KEPT_KEYS, *cfg.settings}
    unread = [key for key in own if key.split('.')[0] not in read]
    if unread:
        raise ValueError(
            f'--cfg-options {unread[0]} would change nothing: `{unread[0].split(".")[0]}` is a '
            'variable that the config file has used already. Set the place that it went to, such '
            'as optim_wrapper.optimizer.lr'
        )
    merge_options(cfg, own)
    resolve_config(cfg)
    return own


def _noted() -> Dict[str, list]:
    """Places of all settings, by name."""
    noted = Config.fromfile(shipped_dir('configs') / '_base_' / 'settings.py').settings
    sets = {name: list(setting['sets']) for name, setting in noted.items()}
    sets['crop_size'].append('train_dataloader.**.Pad.size')  # of mmseg's configs for VOC
    return dict(sets, max_iters=['train_cfg.max_iters', 'param_scheduler.**.end'])


# ------------------------------------------------------------------------------------ refusing


def _refuse_composed(cfg: Config) -> None:
    for key in ('model', 'train_dataloader', 'train_cfg'):
        if not cfg.get(key):
            raise ValueError(f'the config has no `{key}`: a method needs a config that trains')
    if 'mutual' in cfg or 'segmentor' in cfg.model or 'students' in cfg.model:
        kind = 'mutual training' if 'mutual' in cfg else _kind(cfg.model)
        raise ValueError(
            f'the config has a method already ({kind}): --method needs that of a labeled-only run, '
            'such as one of configs/supervised or of mmseg'
        )
    runner = cfg.get('runner_type') or 'Runner'
    if _kind(runner) not in ('Runner', 'SemiRunner'):
        raise ValueError(f'`runner_type` is {runner!r}, but methods run under mmdmt.SemiRunner')


def _refuse_model(cfg: Config, settings: Dict[str, Any]) -> None:
    """Refuse networks whose predictions are no softmax, or that a method cannot train."""
    model, heads = cfg.model, _heads(cfg.model)
    if not settings:
        return
    for key, head in heads.items():
        if _kind(head) in _MASK_HEADS:
            raise ValueError(
                f'`model.{key}` is a {_kind(head)}: it predicts masks with classes, whose sums are '
                'no logits of a softmax, so that pseudo-labels have no confidence to choose them by'
            )
        if head.get('out_channels') == 1:
            raise ValueError(
                f'`model.{key}.out_channels` is 1: set num_classes=2 and out_channels=2, because '
                'pseudo-labels take their confidence from a softmax over the classes'
            )
    if _kind(model) in ('DepthEstimator', 'MultimodalEncoderDecoder'):
        raise ValueError(f'`model.type` is {_kind(model)}, which is no segmentor of fixed classes')
    if (model.get('data_preprocessor') or {}).get('batch_augments'):
        raise ValueError(
            '`data_preprocessor.batch_augments` would mix labeled and unlabeled images: remove it'
        )
    constructor = (cfg.get('optim_wrapper') or {}).get('constructor')
    if 'method' in settings and _kind(constructor) in _LAYER_CONSTRUCTORS:
        raise ValueError(
            f'`optim_wrapper.constructor` is {constructor}, which finds layers by names that begin '
            "with 'backbone'; in an online method they begin with 'student': use paramwise_cfg, or "
            'an offline method such as dmt'
        )
    if 'mutual' in settings:
        _refuse_offline(model, heads)


def _refuse_offline(model: dict, heads: Dict[str, dict]) -> None:
    """Stored labels replace the loss of each head, which has to be a plain one."""
    if _kind(model) != 'EncoderDecoder':
        raise ValueError(
            f'`model.type` is {_kind(model)}, but offline methods train an EncoderDecoder, whose '
            'heads give one dense map of logits each: take an online method, such as mean_teacher'
        )
    for key, head in heads.items():
        kind = class_of(MODELS, head['type'])
        if isinstance(kind, type) and not is_dense_classifier(kind):
            raise ValueError(
                f'`model.{key}` is a {_kind(head)}, which has a loss or a prediction of its own: '
                'offline methods weigh pixels of one dense map of logits; take an online method, '
                'such as mean_teacher'
            )


def _heads(model: dict) -> Dict[str, dict]:
    """Decode and auxiliary heads by their keys."""
    found = {}
    for key in ('decode_head', 'auxiliary_head'):
        head = model.get(key)
        if isinstance(head, (list, tuple)):
            found.update({f'{key}.{index}': each for index, each in enumerate(head)})
        elif head:
            found[key] = head
    return found


# ------------------------------------------------------------------- a config of this package


def _set_lists(cfg: Config, unlabeled: Optional[str], labeled: Optional[str], out: str) -> None:
    """Name other lists, or a folder of unlabeled images, in a config that has both sources."""
    if not unlabeled and not labeled:
        return
    sources = cfg.train_dataloader.dataset.datasets
    plain = copy.deepcopy(cfg)
    plain.source_ratio = [1, 1]
    first, second = map(innermost, resolve_config(plain).train_dataloader.dataset.datasets)
    pipeline = innermost(sources[1])[0]['pipeline']
    if labeled and not unlabeled:
        parts = [*first, *second]
        images = [images_of(part) for part in parts]
        own = [Images(images[0].folder, images[0].suffix, read_list(labeled))]
        sources[1] = other_images(images, own, pipeline, out)
    elif unlabeled and osp.isfile(unlabeled):
        cfg.unlabeled_list = osp.abspath(unlabeled)
    elif unlabeled:
        own = dict(ann_file=osp.abspath(labeled)) if labeled else {}
        images = [images_of(dict(part, **own)) for part in first]
        sources[1] = _unlabeled(unlabeled, images, pipeline, out)
    if labeled:
        cfg.labeled_list = osp.abspath(labeled)


def _unlabeled(given: str, images: Sequence[Images], pipeline: List[dict], out: str) -> dict:
    source, left_out = unlabeled_source(given, images, pipeline, out)
    if left_out:
        _log(f'{left_out} images of {given} are labeled and left out of the unlabeled ones')
    return source


# ------------------------------------------------------------------------------- a plain config


def _semi_config(
    cfg: Config,
    settings: Dict[str, Any],
    lists: Tuple[Optional[str], Optional[str]],
    own_pipeline: Optional[List[dict]],
    out: str,
) -> Config:
    """A plain config as one of this package: both sources, of which it draws the labeled one."""
    unlabeled, labeled = lists
    _set_preprocessor(cfg, 'method' in settings)
    dataset = cfg.train_dataloader.dataset
    before = innermost(dataset)
    by_epoch = _is_by_epoch(cfg.train_cfg)
    images = [images_of(part) for part in before if labeled or by_epoch or settings]
    parts, own = choose_labeled(before, images, labeled, out) if labeled else (before, images)
    sources = [joined([dict(part, pipeline=pack_for_semi(part['pipeline'])) for part in parts])]
    if settings:
        weak = 'method' in settings
        pipeline = own_pipeline or unlabeled_pipeline(before[0]['pipeline'], weak)
        _log(f'unlabeled images are loaded by {" > ".join(map(_kind, pipeline))}')
        if unlabeled:
            sources.append(_unlabeled(unlabeled, own, pipeline, out))
        elif labeled:
            sources.append(other_images(images, own, pipeline, out))
        else:
            raise ValueError(
                'the method needs unlabeled images: name a folder or list of them (--unlabeled), '
                'or which images of the config are labeled (--labeled LIST), and the others are not'
            )
    if by_epoch:
        count = sum(len(each.names) for each in own) * dataset.get('times', 1)
        _count_iterations(cfg, count)
    _set_loader(cfg, sources)
    _set_runtime(cfg)
    note_settings(cfg, _noted())
    return cfg


def _set_preprocessor(cfg: Config, online: bool) -> None:
    """Put the preprocessor into the model, where a method looks for it, with a size to pad to."""
    given = cfg.pop('data_preprocessor', None)
    own = cfg.model.get('data_preprocessor') or given
    if not own:
        raise ValueError(
            'the config has no `data_preprocessor`: it says how images are normalized and to which '
            'size they are padded'
        )
    kind = _kind(own)
    if online and kind not in ('SegDataPreProcessor', 'PaddingPreprocessor'):
        raise ValueError(
            f'`data_preprocessor.type` is {kind}: an online method loads labeled and unlabeled '
            "images by mmseg's SegDataPreProcessor alone"
        )
    if not own.get('size') and not own.get('size_divisor'):
        steps = innermost(cfg.train_dataloader.dataset)[0]['pipeline']
        crop = next((step['crop_size'] for step in steps if 'crop_size' in step), None)
        if crop is None:
            raise ValueError('`data_preprocessor.size` is missing: set the size of training images')
        own['size'] = crop
        _log(f'`data_preprocessor.size` is missing: it is that of the crops, {tuple(crop)}')
    cfg.model.data_preprocessor = own


def _is_by_epoch(train_cfg: dict) -> bool:
    kind = train_cfg.get('type')
    if kind is not None and _kind(kind) not in ('IterBasedTrainLoop', 'EpochBasedTrainLoop'):
        raise ValueError(
            f'`train_cfg.type` is {kind}: methods need an IterBasedTrainLoop (or an '
            'EpochBasedTrainLoop, which is translated)'
        )
    return _kind(kind) == 'EpochBasedTrainLoop' if kind else bool(train_cfg.get('by_epoch'))


def _count_iterations(cfg: Config, images: int) -> None:
    """Turn epochs into the steps that they take on the labeled images."""
    loop, batch = cfg.train_cfg, cfg.train_dataloader.batch_size
    processes = int(os.environ.get('WORLD_SIZE', 1))
    steps = math.ceil(images / (batch * processes))
    length = loop.max_epochs * steps
    _log(
        f'{loop.max_epochs} epochs of {images} labeled images, {batch} in a batch of '
        f'{processes} processes, are {length} steps ({steps} an epoch)'
    )
    own = {key: loop[key] * steps for key in ('val_interval', 'val_begin') if key in loop}
    if 'dynamic_intervals' in loop:
        own['dynamic_intervals'] = [(a * steps, b * steps) for a, b in loop.dynamic_intervals]
    own.setdefault('val_interval', steps)
    cfg.train_cfg = ConfigDict(type='IterBasedTrainLoop', max_iters=length, **own)
    for scheduler in schedulers_of(cfg):
        _count_scheduler(scheduler, steps, length)
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    checkpoint = hooks.setdefault('checkpoint', ConfigDict())
    if checkpoint.get('by_epoch', True) and checkpoint.get('interval', 1) > 0:
        checkpoint.update(interval=checkpoint.get('interval', 1) * steps)
    checkpoint.by_epoch = False
    hooks.setdefault('logger', ConfigDict(type='LoggerHook')).log_metric_by_epoch = False
    cfg.log_processor = dict(cfg.get('log_processor') or {}, by_epoch=False)


def _count_scheduler(scheduler: dict, steps: int, length: int) -> None:
    """Turn the epochs of a scheduler, which counts them by default, into steps."""
    if not scheduler.get('by_epoch', True):
        return
    for key in ('begin', 'end', 'step_size', 'T_max', 'total_steps'):
        if scheduler.get(key) is not None:
            scheduler[key] = scheduler[key] * steps
    if 'milestones' in scheduler:
        scheduler['milestones'] = [epoch * steps for epoch in scheduler['milestones']]
    if _kind(scheduler) == 'ExponentialLR':
        scheduler['gamma'] = scheduler['gamma'] ** (1 / steps)
    scheduler.setdefault('end', length)
    scheduler['by_epoch'] = False
    scheduler.pop('convert_to_iter_based', None)


def _set_loader(cfg: Config, sources: List[dict]) -> None:
    loader = cfg.train_dataloader
    sampler = loader.pop('sampler', None)
    replaced = [sampler] if sampler else []
    replaced += [loader.pop(key) for key in ('batch_sampler', 'drop_last') if loader.get(key)]
    odd = [_kind(each) for each in replaced if isinstance(each, dict)]
    if set(odd) - {'InfiniteSampler', 'DefaultSampler', 'MultiSourceSampler'}:
        _log(f'{", ".join(odd)} give way to mmdmt.MultiSourceSampler')
    ratio = [1, 0][: len(sources)]
    loader.sampler = dict(
        type='mmdmt.MultiSourceSampler', batch_size=loader.batch_size, source_ratio=ratio
    )
    loader.dataset = dict(type='mmdmt.SemiDataset', datasets=sources)


def _set_runtime(cfg: Config) -> None:
    """Runner, hooks and validation loop of the shipped configs, with what the config sets."""
    runtime = Config.fromfile(shipped_dir('configs') / '_base_' / 'default_runtime.py')
    hooks = runtime.pop('default_hooks')
    for name, own in (cfg.get('default_hooks') or {}).items():
        stock = own and _kind(own) in ('CheckpointHook', 'RuntimeInfoHook', 'None')
        if own and name in hooks and (stock or _kind(own) == _kind(hooks[name])):
            hooks[name].update({key: own[key] for key in own if key != 'type'})
        else:
            hooks[name] = own
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    imports = [imports] if isinstance(imports, str) else list(imports)
    for key, value in runtime.items():
        cfg.setdefault(key, value)
    cfg.custom_imports = dict(
        imports=list(dict.fromkeys([*imports, 'mmdmt'])), allow_failed_imports=False
    )
    cfg.default_hooks = hooks
    cfg.runner_type = 'mmdmt.SemiRunner'
    loop = cfg.get('val_cfg')
    if loop and _kind(loop) in ('ValLoop', 'None'):
        cfg.val_cfg = dict(loop, type='mmdmt.NetworksValLoop')


# ----------------------------------------------------------------------------------- the method


def _set_batch(cfg: Config, mutual: Optional[dict], ours: bool, chosen: set) -> None:
    """Say what of a batch is labeled: to batches of a plain config as many images are added."""
    size = cfg.batch_size
    if not ours and 'batch_size' not in chosen:
        cfg.batch_size = max(size, 2) if mutual else 2 * size
        if 'base_batch_size' in (cfg.get('auto_scale_lr') or {}):
            cfg.auto_scale_lr.base_batch_size *= cfg.batch_size / size
    if 'source_ratio' not in chosen:
        # A network that starts anew needs more of the labels.
        more = mutual and not mutual.get('round', {}).get('from_scratch') and cfg.batch_size > 3
        cfg.source_ratio = [1, 3] if more else [1, 1]
    _log(
        f'batches have {cfg.batch_size} images, labeled to unlabeled as '
        f'{":".join(map(str, cfg.source_ratio))}'
    )


def _set_method(cfg: Config, settings: Dict[str, Any], options: Dict[str, Any]) -> None:
    (part,) = settings
    base = Config(settings)
    base.merge_from_dict({f'{part}.{key}': value for key, value in options.items()})
    if part == 'method':
        cfg.model = ConfigDict(segmentor=cfg.model, **base.method)
        return
    cfg.runner_type = 'mmdmt.MutualTrainingRunner'
    cfg.mutual = base.mutual
    _set_lengths(cfg)
    metrics = (cfg.get('val_evaluator') or {}).get('iou_metrics') or ['mIoU']
    if 'mIoU' not in metrics:
        cfg.mutual.setdefault('metric', metrics[0])


def _set_lengths(cfg: Config) -> None:
    """Share the steps of the config out to the stages of each member."""
    mutual, total = cfg.mutual, cfg.max_iters
    rounds = len(mutual.ratios)
    scratch = mutual.get('round', {}).get('from_scratch')
    first = total // (1 + 2 * rounds) if scratch else total // 4
    lengths = dict(supervised=first, round=(total - first) // max(rounds, 1))
    for part, length in lengths.items():
        # Three is the least of which the reliability of images can be told.
        mutual.setdefault(part, ConfigDict()).setdefault('max_iters', max(length, 3))
    _log(
        f'the {total} steps become {mutual.supervised.max_iters} on the labels and '
        f'{mutual.round.max_iters} in each of {rounds} rounds (mutual.supervised.max_iters, '
        'mutual.round.max_iters)'
    )
    # Stages have lengths of their own, which scale the schedule as it was written.
    noted = [key for key in cfg if key.endswith('settings') and 'max_iters' in cfg[key]]
    cfg.max_iters = cfg[noted[-1]].max_iters.default
