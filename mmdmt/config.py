"""Settings that are set once at the top of a config: where they go, and what is trained then."""

import copy
import inspect
import re
from collections.abc import Container, Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from os.path import dirname
from typing import Any, Callable, Dict, List, NamedTuple, Set, Tuple

from mmengine.config import Config
from mmengine.runner import Runner

from mmdmt.checks import refuse_unknown_keys
from mmdmt.protocols import apply_protocol

#: What runners and tools read.
KEPT_KEYS = {
    *inspect.signature(Runner).parameters,
    'runner_type',
    'custom_imports',
    'trusted_checkpoints',
    'allow_unmatched',
    'widen_input',
    'channels_last',
    'find_unused_parameters',
    'batch_size_is_total',
    'model_wrapper_cfg',
    'sync_bn',
    'compile',
    'activation_checkpointing',
    'efficient_conv_bn_eval',
    'test_pipeline',
    'tta_model',
    'tta_pipeline',
    'mutual',
    'stage',
    'chain',
    'labeling',
}


class Place(NamedTuple):
    """Where a value stands in a config.

    Attributes:
        node: The dict or list that holds it.
        key: Its key or index there.
        names: What a path may call each step that leads to it: the key, or index and type.
    """

    node: Any
    key: Any
    names: Tuple[Tuple[str, ...], ...]

    @property
    def value(self) -> Any:
        """The value that stands there."""
        return self.node[self.key]


def resolve_config(cfg: Config) -> Config:
    """Turn a config into the plain one that is trained.

    A variable of a ``_base_`` file is copied where it is used, so that a child config or
    ``--cfg-options`` that sets ``crop_size`` changes the variable alone. A base therefore notes, in
    ``settings`` or a key that ends with ``_settings``, the value it was written with and the places
    it goes to::

        settings = dict(crop_size=dict(
            default=crop_size,
            sets=['train_dataloader.**.RandomCrop.crop_size', 'model.**.data_preprocessor.size']))

    A path ends with a key; ``**`` stands for any number of steps; in a list a step is an index or
    the ``type`` of an element, without its prefix; ``*`` in a step stands for any characters. A
    place that holds another value than the default keeps it; a config that changes a setting and
    uses the new value itself notes it too. ``fixed`` says why a setting must keep its default.
    Members and stages of ``mutual`` may change settings in their ``cfg_options``. A warm-up that
    would not end before ``max_iters`` becomes shorter in proportion.

    Then ``evaluation_protocol`` is applied (:func:`mmdmt.protocols.apply_protocol`), sources whose
    ``train_dataloader.sampler.source_ratio`` is 0 are dropped, and variables that only feed other
    keys are removed. A second call changes nothing.

    Args:
        cfg (Config): Changed in place.

    Returns:
        Config: ``cfg``.

    Raises:
        ValueError: If a setting is changed that goes nowhere, or not to all of mutual training,
            none of the noted ones is set, or one is misspelled; or the batch sizes of the training
            loader and its sampler differ.
    """
    settings = _settings(cfg)
    _check_mutual(cfg, {name: s['defaults'] for name, s in settings.items()})
    if 'max_iters' in settings:
        shorten_warm_up(cfg, settings['max_iters']['defaults'], cfg.max_iters)
    _spread(cfg, settings)
    apply_protocol(cfg)  # last: its windows have the final crop size
    _drop_unused_sources(cfg)
    _check_batch_size(cfg)
    if settings:
        for key in set(cfg) - KEPT_KEYS:
            meant = get_close_matches(key, settings, n=1, cutoff=0.9)
            if meant and key not in settings:
                raise ValueError(f'`{key}` is no setting of this config: is `{meant[0]}` meant?')
            cfg.pop(key)
    return cfg


def note_settings(cfg: Config, noted: Dict[str, List[str]]) -> None:
    """Give a config that notes no settings those that it has places for.

    Args:
        cfg (Config): Gets ``settings`` and, at its top, the value of each.
        noted (dict[str, list[str]]): Paths of the places by the name of the setting. The value is
            that of the first place on the first path; places with another value keep theirs.
    """
    places = [place for place in _walk(cfg) if place.names[0] != ('settings',)]
    cfg.settings = {}
    for name, sets in noted.items():
        found = (
            place.value
            for path in (each.split('.') for each in sets)
            for place in places
            if place.value is not None and _leads(path, place.names)
        )
        value = next(found, None)
        if value is not None:
            cfg[name] = copy.deepcopy(value)
            cfg.settings[name] = dict(default=copy.deepcopy(value), sets=list(sets))


def merge_options(cfg: Config, options: Dict[str, Any]) -> None:
    """Merge ``--cfg-options`` into a config that was not resolved yet.

    A new key is refused where it is nearly one that is there, or a variable at the top of one of
    our configs; a file that inherits the config may set any key.

    Raises:
        ValueError: With the option and what it is near to.
    """
    if cfg.get('settings'):
        known = {*cfg, *KEPT_KEYS, 'evaluation_protocol'}
        refuse_unknown_keys('--cfg-options', [key.split('.')[0] for key in options], known)
    for option in options:
        _refuse_misspelled(cfg, option)
    cfg.merge_from_dict(options)


def _refuse_misspelled(cfg: Config, option: str) -> None:
    node, steps = cfg, option.split('.')
    for place, step in enumerate(steps):
        if isinstance(node, (list, tuple)) and step.lstrip('-').isdigit() and int(step) < len(node):
            node = node[int(step)]
        elif isinstance(node, (dict, Config)) and step in node:
            node = node[step]
        elif isinstance(node, (dict, Config)):
            # Only a last key may be much like another one: `class_weight` beside `loss_weight`.
            is_last = node is not cfg and place == len(steps) - 1
            others = {*node, *KEPT_KEYS} if node is cfg else {*node}
            found = set() if step in others else _near(step, others, 0.91 if is_last else 0.85)
            if found:
                raise ValueError(
                    f'--cfg-options: `{option}` has the new key {step!r}: is {min(found)!r} meant? '
                    'If not, set it in a config file'
                )
            return
        else:
            return


def _near(step: str, names: Set[str], cutoff: float) -> Set[str]:
    """Names that a step is a slip of: exchanged letters, an ending, or nearly the same text."""
    found = {name for name in names if sorted(name) == sorted(step)}
    found |= {n for n in names if n[: len(step)] == step[: len(n)] and abs(len(n) - len(step)) < 3}
    found |= set(get_close_matches(step, names, n=1, cutoff=cutoff))
    # But `conv2` is new beside `conv1`.
    return {name for name in found if re.sub(r'\d', '', name) != re.sub(r'\d', '', step)}


def is_classification(cfg: Config) -> bool:
    """Whether a config trains a classifier of mmpretrain, not a segmentor."""
    return cfg.get('default_scope') == 'mmpretrain'


def schedulers_of(cfg: Config) -> List[dict]:
    """The parameter schedulers of a config, which may have one, a list, or none."""
    schedulers = cfg.get('param_scheduler') or []
    return [schedulers] if isinstance(schedulers, dict) else list(schedulers)


def shorten_warm_up(cfg: Config, lengths: Sequence[int], length: int) -> None:
    """Scale a warm-up that would not end before training, as the training itself was scaled.

    Args:
        cfg (Config): Gets ``param_scheduler``, where anything is changed.
        lengths (Sequence[int]): Lengths that schedulers were written with.
        length (int): The new one, in steps.
    """
    schedulers = schedulers_of(cfg)
    if all(s.get('end') not in lengths or s.get('begin', 0) < length for s in schedulers):
        return
    for scheduler in schedulers:
        for key in {'begin', 'end'} & set(scheduler):
            if scheduler[key] not in lengths:
                scheduler[key] = scheduler[key] * length // lengths[-1]
    cfg.param_scheduler = [s for s in schedulers if s.get('begin', 0) < s['end']]


def _settings(cfg: Config) -> Dict[str, dict]:
    """Defaults and paths of the noted settings that have a default, by name."""
    noted: Dict[str, dict] = {}
    for key in [key for key in cfg if key == 'settings' or key.endswith('_settings')]:
        for name, setting in cfg[key].items():
            refuse_unknown_keys(f'{key}.{name}', setting, ('default', 'sets', 'fixed'))
            if 'default' in setting:
                found = noted.setdefault(name, dict(defaults=[], sets=[]))
                found['defaults'].append(_plain(setting['default']))
                found['sets'] += setting.get('sets', ())
                if 'fixed' in setting and _plain(cfg.get(name)) != found['defaults'][-1]:
                    raise ValueError(f'`{name}` is set to {cfg[name]!r}, but {setting["fixed"]}')
            elif name in cfg:
                raise ValueError(
                    f'`{name}` is set to {cfg[name]!r}, but nothing of this config takes it: '
                    f'`{key}.{name}` has no default'
                )
    missing = [name for name in noted if name not in cfg]
    if missing:
        raise ValueError(f'`settings` notes {missing}, which this config does not set')
    return noted


def _check_mutual(cfg: Config, defaults: Dict[str, list]) -> None:
    """Refuse changes that would reach only a part of mutual training."""
    mutual = cfg.get('mutual') or {}
    changed = {name for name, noted in defaults.items() if _plain(cfg.get(name)) != noted[-1]}
    parts = [key for key in ('supervised', 'round') if 'max_iters' in mutual.get(key, {})]
    if parts and 'max_iters' in changed:
        raise ValueError(
            f'`max_iters` is set to {cfg.max_iters}, but `mutual` states lengths of its own (for '
            f'{parts}): set `mutual.supervised.max_iters` and `mutual.round.max_iters`'
        )
    for index, member in enumerate(mutual.get('members', ())):
        own = member.get('labeled_list')
        if own and 'labeled_list' in changed and dirname(own) != dirname(cfg.labeled_list):
            raise ValueError(
                f'`labeled_list` is set to {cfg.labeled_list!r}, but round 0 of member '
                f'{member.get("name")!r} has {own!r} of another folder: set '
                f'`mutual.members.{index}.labeled_list` too'
            )


def _spread(cfg: Config, settings: Dict[str, dict]) -> None:
    """Put every setting into its places."""
    everywhere = [place for place in _walk(cfg) if place.names[0] != ('settings',)]
    # All places first, so that no setting meets the new value of another one.
    found = {name: _places(everywhere, cfg, name, settings[name]) for name in settings}
    for name, places in found.items():
        for place in places:
            # RandomCrop takes tuples only, but the command line may give lists.
            place.node[place.key] = _like(place.value, cfg[name])
    for options in _options(cfg):
        for name in [name for name in options if name in found]:
            value = options.pop(name)
            for place in (p for p in found[name] if p.names[0] != ('mutual',)):
                options['.'.join(step[0] for step in place.names)] = _like(place.value, value)


def _places(everywhere: List[Place], cfg: Config, name: str, setting: dict) -> List[Place]:
    """The places of a setting that have no value of their own."""
    old, new = setting['defaults'], _plain(cfg[name])
    paths = [path.split('.') for path in setting['sets']]
    found = [
        place
        for place in everywhere
        if any(path[-1] == place.names[-1][0] and _leads(path, place.names) for path in paths)
        and _plain(place.value) in (*old, new)
    ]
    if new not in old and not found:
        raise ValueError(
            f'`{name}` is set to {new!r}, but reaches no place: none of {setting["sets"]} is '
            f'there with the value that it had, {old[0]!r}'
        )
    return found


def _options(cfg: Config) -> List[dict]:
    """The ``cfg_options`` of members and stages of mutual training."""
    mutual = cfg.get('mutual') or {}
    parts = [*mutual.get('members', []), mutual.get('supervised', {}), mutual.get('round', {})]
    return [part['cfg_options'] for part in parts if part.get('cfg_options')]


def _walk(node: Any, names: tuple = ()) -> Iterator[Place]:
    """All places of nested dicts and lists."""
    items = node.items() if isinstance(node, (dict, Config)) else enumerate(node)
    for key, value in items:
        if isinstance(key, int):
            kind = str(value.get('type', '')) if isinstance(value, dict) else ''
            steps = ((str(key), kind.split('.')[-1]),)
        else:  # `cfg_options` have dots in their keys
            steps = tuple((step,) for step in str(key).split('.'))
        if not isinstance(node, tuple):
            yield Place(node, key, (*names, *steps))
        if isinstance(value, (dict, list, tuple)):
            yield from _walk(value, (*names, *steps))


def _leads(path: Sequence[str], names: Sequence[Sequence[str]]) -> bool:
    """Whether a path, step by step, is that of a place."""
    if not path or not names:
        return not names and all(step == '**' for step in path)
    if path[0] == '**':
        return _leads(path[1:], names) or _leads(path, names[1:])
    return any(fnmatchcase(n, path[0]) for n in names[0]) and _leads(path[1:], names[1:])


def _like(old: Any, new: Any) -> Any:
    """A copy of the new value, a tuple where the old one is."""
    return tuple(new) if isinstance(old, tuple) else copy.deepcopy(new)


def _plain(value: Any) -> Any:
    """Tuples as lists, because the command line may give lists."""
    return list(value) if isinstance(value, (list, tuple)) else value


def _drop_unused_sources(cfg: Config) -> None:
    """Take sources with the ratio 0 out of the training data: nothing of them is read."""
    loader = cfg.get('train_dataloader') or {}
    sampler, dataset = loader.get('sampler') or {}, loader.get('dataset') or {}
    ratio, sources = sampler.get('source_ratio'), dataset.get('datasets')
    if not ratio or not sources or len(ratio) != len(sources) or all(ratio) or not any(ratio):
        return
    if 'mutual' in cfg:
        raise ValueError(
            f'`source_ratio` is {ratio}, but mutual training learns from both sources: set it '
            'to the ratio of labeled and unlabeled images in a batch of a round, such as [1, 1]'
        )
    dataset.datasets = [source for source, share in zip(sources, ratio) if share]
    sampler.source_ratio = [share for share in ratio if share]


def _check_batch_size(cfg: Config) -> None:
    loader = cfg.get('train_dataloader') or {}
    sampled = (loader.get('sampler') or {}).get('batch_size')
    if sampled is not None and sampled != loader.get('batch_size'):
        raise ValueError(
            f'`train_dataloader.batch_size` is {loader.get("batch_size")}, but '
            f'`train_dataloader.sampler.batch_size` is {sampled}, so that batches would not have '
            'the stated ratio; set the top-level `batch_size` of the dataset config, or both'
        )


def flatten(
    key: str, value: Any, out: Dict[str, str], skipped: Container[str], text: Callable = str
) -> None:
    """Write nested dicts and lists into ``out`` as ``a.b.0.c -> text``, without some last keys."""
    if key.rsplit('.', 1)[-1] in skipped:
        return
    items = value.items() if isinstance(value, dict) else None
    if isinstance(value, (list, tuple)) and any(isinstance(each, (dict, list)) for each in value):
        items = enumerate(value)
    if items is None:
        out[key] = text(value)
        return
    for name, each in items:
        flatten(f'{key}.{name}', each, out, skipped, text)
