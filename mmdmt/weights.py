"""Loading weights into a model: a checkpoint that does not fit is refused, not half used."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Dict, List, NamedTuple, Set, Tuple, Union

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import Tensor, nn

from mmdmt.checks import listed

_OTHER_SHAPE = re.compile(r'(?:size mismatch for|While copying the parameter named) "?([\w.]+)')
_AUXILIARY = 'auxiliary_head'  # mmseg's name of one or a list


class CheckpointMismatchError(RuntimeError):
    """Weights do not fit a model, and nobody has said that they may differ."""


class WeightsMismatchError(ValueError):
    """A file to convert does not have the layout that it should have."""


def layout_problems(weights: Mapping[str, Any], shapes: Mapping[str, torch.Size]) -> List[str]:
    """Lines that name weights that are missing, unknown or of another shape; empty if none is.

    ``weights`` are those of a file to convert, under the names of ``shapes``, which are expected.
    Counters of batch norm may be missing.
    """
    missing = [name for name in shapes if name not in weights]
    found = {
        'missing': [name for name in missing if not name.endswith('num_batches_tracked')],
        'unknown': [str(name) for name in weights if name not in shapes],
        'of another shape': [
            f'{name} {_described(weights[name])} instead of {tuple(shape)}'
            for name, shape in shapes.items()
            if name in weights and getattr(weights[name], 'shape', None) != shape
        ],
    }
    return [f'  {len(names)} {kind}: {listed(names, 20)}' for kind, names in found.items() if names]


def _described(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


class Loading(NamedTuple):
    """One load into a module, with torch's lists, which also hold what concerns other modules.

    Attributes:
        module: The module.
        prefix: What keys of the module begin with in the lists.
        missing: Keys of the model that the weights do not have.
        unexpected: Keys of the weights that the model does not have.
        errors: Messages, such as of shapes that differ.
    """

    module: nn.Module
    prefix: str
    missing: List[str]
    unexpected: List[str]
    errors: List[str]


class Fit(NamedTuple):
    """How weights fit a module; the integers among them, counters and indices, do not count.

    Attributes:
        total: Number of weights of the module.
        missing: Those that the file does not have.
        differing: Those that have another shape in the file.
        surplus: Weights of the file that the module does not have.
    """

    total: int
    missing: List[str]
    differing: List[str]
    surplus: List[str]

    @property
    def unmatched(self) -> List[str]:
        """All weights that do not fit."""
        return [*self.missing, *self.differing, *self.surplus]


def load_weights(
    model: nn.Module,
    checkpoint: dict,
    origin: str,
    allowed: Union[str, Sequence[str]] = (),
    revise_keys: Sequence[tuple] = ((r'^module\.', ''),),
    exact: bool = False,
) -> None:
    """Load a checkpoint into a model that it fits.

    Auxiliary heads serve training alone: a model without any leaves out those of the file. What a
    method has besides its networks, such as banks of features or earlier students, starts afresh
    where the file has none, and is left out of a file of another method. Both are logged.

    Args:
        model: The model. One that wraps another for test-time augmentation gives the inner one.
        checkpoint: With ``state_dict``, or weights alone.
        origin: Where it comes from, for messages.
        allowed: Parts that may be missing, left over or of another shape, as dotted names:
            ``decode_head.conv_seg`` is that of every network in the model. What is not loaded is
            logged.
        revise_keys: Regular expressions and what they become in the keys of the checkpoint.
        exact: Refuse these too.

    Raises:
        CheckpointMismatchError: Other weights do not fit; the message counts and names them.
    """
    model = model.module if isinstance(model, BaseTTAModel) else model
    with watch_loading([model]) as seen:
        _load_checkpoint_to_model(
            model, checkpoint, strict=False, logger='current', revise_keys=list(revise_keys)
        )
    fit = fit_of(seen[-1])
    if not exact:
        fit = _without_auxiliary_heads(fit, model, origin)
        fit = _without_method_state(fit, model, origin)
    _check(fit, type(model).__name__, origin, allowed)


@contextmanager
def checked_pretrained(model: nn.Module, allowed: Union[str, Sequence[str]] = ()) -> Iterator[None]:
    """Check what ``init_cfg=dict(type='Pretrained')`` of any part of a model loads in the block.

    Such a file may hold more than the part, such as a classifier's head. A whole child of the part,
    such as ``layer4``, of which it holds nothing keeps its initialization, which is logged, as long
    as more than half of the weights match.

    Raises:
        CheckpointMismatchError: A file does not fit, beyond the ``allowed`` parts.
    """
    sources = {
        module: (name, source)
        for name, module in model.named_modules()
        if (source := _pretrained_source(module))
    }
    with watch_loading(sources) as seen:
        yield
    last = {loading.module: loading for loading in seen}
    for module, loading in last.items():
        name, source = sources[module]
        what = name or type(module).__name__
        fit, new = _initial_fit(module, fit_of(loading))
        if new:
            _warn(f'{source} has nothing of {new} of {what}: they keep their initialization')
        keys = ([f'{name}.{key}'.lstrip('.') for key in each] for each in fit[1:])
        _check(Fit(fit.total, *keys), what, source, allowed)


@contextmanager
def watch_loading(modules: Iterable[nn.Module]) -> Iterator[List[Loading]]:
    """Note every load of a state dict into some modules, also as parts of others."""
    seen: List[Loading] = []

    def note(module, state_dict, prefix, metadata, strict, missing, unexpected, errors) -> None:
        seen.append(Loading(module, prefix, missing, unexpected, errors))

    handles = [
        module._register_load_state_dict_pre_hook(note, with_module=True) for module in modules
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def fit_of(loading: Loading) -> Fit:
    """How a load that is over went."""
    prefix = loading.prefix

    def own(keys: Iterable[str]) -> List[str]:
        return [key[len(prefix) :] for key in keys if key.startswith(prefix)]

    weights = _weights_of(loading.module)
    errors = (found.group(1) for found in map(_OTHER_SHAPE.match, loading.errors) if found)
    surplus = own(key for key in loading.unexpected if not key.endswith('.num_batches_tracked'))
    missing = [key for key in own(loading.missing) if key in weights]
    return Fit(len(weights), missing, own(errors), surplus)


def _weights_of(module: nn.Module) -> Set[str]:
    state: Dict[str, Tensor] = module.state_dict()
    return {k for k, v in state.items() if isinstance(v, Tensor) and v.is_floating_point()}


def _pretrained_source(module: nn.Module) -> str:
    """The file or address that ``init_cfg`` of a module names, empty if none."""
    init_cfg = getattr(module, 'init_cfg', None) or ()
    for step in [init_cfg] if isinstance(init_cfg, dict) else init_cfg:
        if str(step.get('type')).split('.')[-1] == 'Pretrained':
            return str(step.get('checkpoint'))
    return ''


def _initial_fit(module: nn.Module, fit: Fit) -> Tuple[Fit, List[str]]:
    """The fit without other parts of the file and new children of the module, and the latter."""
    children = {name for name, _ in module.named_children()}
    fit = fit._replace(surplus=[key for key in fit.surplus if _first(key) in children])
    weights = _weights_of(module)
    matched = weights - {*fit.missing, *fit.differing}
    given = {_first(key) for key in (*matched, *fit.differing, *fit.surplus)}
    new = {_first(key) for key in fit.missing} & children - given
    if 2 * len(matched) <= len(weights):
        return fit, []
    return fit._replace(missing=[k for k in fit.missing if _first(k) not in new]), sorted(new)


def _without_auxiliary_heads(fit: Fit, model: nn.Module, origin: str) -> Fit:
    """The fit without the auxiliary heads of the file if the model has none."""
    heads = [key for key in fit.surplus if _AUXILIARY in key.split('.')]
    if not heads or any(_AUXILIARY in name.split('.') for name, _ in model.named_modules()):
        return fit
    _warn(f'{origin}: left out, as the model has no auxiliary heads: {listed(heads)}')
    return fit._replace(surplus=[key for key in fit.surplus if key not in set(heads)])


def _without_method_state(fit: Fit, model: nn.Module, origin: str) -> Fit:
    """The fit of the networks of an online method, without what it and the file have besides."""
    networks = set(getattr(model, 'network_names', ()))
    if not networks:
        return fit
    new = [key for key in fit.missing if _first(key) not in networks]
    # A network of the file that the model has not is no such state.
    others = {_first(key) for key in fit.surplus if key.split('.')[1:2] == ['backbone']}
    old = [key for key in fit.surplus if _first(key) not in networks | others]
    if new:
        _warn(f'{origin} has no {listed(new)}: {type(model).__name__} starts with new ones')
    if old:
        _warn(f'{origin}: left out, as {type(model).__name__} has no such state: {listed(old)}')
    missing = [key for key in fit.missing if key not in set(new)]
    return fit._replace(missing=missing, surplus=[k for k in fit.surplus if k not in set(old)])


def _first(key: str) -> str:
    return key.split('.')[0]


def _check(fit: Fit, what: str, origin: str, allowed: Union[str, Sequence[str]]) -> None:
    """Refuse weights that do not fit, and log those that were allowed not to."""
    allowed = [allowed] if isinstance(allowed, str) else list(allowed or ())
    excused = [k for k in fit.unmatched if any(f'.{part}.' in f'.{k}.' for part in allowed)]
    if len(excused) == len(fit.unmatched):
        if excused:
            _warn(f'{origin}: not loaded, as `allow_unmatched`={allowed} says: {listed(excused)}')
        return
    raise CheckpointMismatchError(_refusal(fit, set(excused), what, origin))


def _refusal(fit: Fit, excused: Collection[str], what: str, origin: str) -> str:
    """What does not fit, and how to accept it."""
    matched = fit.total - len(fit.missing) - len(fit.differing)
    kinds = {
        'missing in the file': fit.missing,
        'of another shape there': fit.differing,
        'in the file only': fit.surplus,
    }
    found = [f'{len(keys)} are {kind}: {listed(keys, 4)}' for kind, keys in kinds.items() if keys]
    parts = {key.rpartition('.')[0] or key for key in fit.unmatched if key not in excused}
    example = sorted(parts) if len(parts) < 5 else ['decode_head.conv_seg']
    return (
        f'{origin} does not fit {what}: {matched} of {fit.total} weights match; '
        f'{"; ".join(found)}. Is it the right file? If a part may differ on purpose, such as a '
        f'head with other classes, name it: allow_unmatched={example} in the config, or '
        f'--cfg-options allow_unmatched="{example}"'
    )


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
