"""Loading weights into a model: a checkpoint that does not fit is refused, not half used."""

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple, Union

import torch
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.runner.checkpoint import _load_checkpoint_to_model
from torch import Tensor, nn

from mmdmt.checks import check_choice, listed

_OTHER_SHAPE = re.compile(r'(?:size mismatch for|While copying the parameter named) "?([\w.]+)')
_OTHER_BANDS = re.compile(
    r'size mismatch for "?([\w.]+).*Size\(\[(\d+), [13], (\d+), (\d+)\]\)'
    r'.*Size\(\[\2, \d+, \3, \4\]\)',
    re.DOTALL,
)
#: How the first convolution of pretrained weights takes other channels than theirs.
WIDENINGS = ('repeat', 'mean', 'zero')
_AUXILIARY = 'auxiliary_head'  # mmseg's name of one or a list


class CheckpointMismatchError(RuntimeError):
    """Weights do not fit a model, and nobody has said that they may differ."""


class MissingWeightsError(RuntimeError):
    """Weights to begin with are neither on this machine nor to be had over the network."""


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
        bands: Convolutions of ``differing`` that only take another number of channels than the
            one or three of the file.
    """

    total: int
    missing: List[str]
    differing: List[str]
    surplus: List[str]
    bands: Sequence[str] = ()

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
def available_weights(cfg: Any) -> Iterator[None]:
    """Say clearly which weights of the ``model`` in a config cannot be had, and what to do.

    Raises:
        MissingWeightsError: A file is missing, or an address cannot be reached.
    """
    try:
        yield
    except Exception as error:
        module = type(error).__module__.split('.')[0]
        if not (isinstance(error, OSError) or module in ('httpx', 'httpcore', 'huggingface_hub')):
            raise
        wanted = dict(_sources_in(cfg.get('model') or {}, 'model'))
        key = next(iter(wanted), 'model.backbone.init_cfg')
        found = ', '.join(f'{each}={source!r}' for each, source in wanted.items())
        if key.endswith('.pretrained=True'):  # of timm
            key = key.rpartition('=')[0]
            local, none = f'{key}_cfg_overlay.file', 'False'
        else:
            local, none = key if key.endswith('.pretrained') else f'{key}.checkpoint', 'None'
        raise MissingWeightsError(
            f'the weights to begin with cannot be had ({type(error).__name__}: {error}). The '
            f'config asks for {found or "some that a part of it fetches"}. Where there is a '
            'network, download them once; else name a file of this machine, '
            f'--cfg-options {local}=FILE, or begin with random weights, '
            f'--cfg-options {key}={none}'
        ) from error


def _sources_in(node: Any, path: str) -> Iterator[Tuple[str, str]]:
    """Places in a model's config that name initial weights, and what they name."""
    if isinstance(node, dict):
        init_cfg = node.get('init_cfg')
        if isinstance(init_cfg, dict) and str(init_cfg.get('type')).endswith('Pretrained'):
            yield f'{path}.init_cfg', str(init_cfg.get('checkpoint'))
        if node.get('pretrained') is True:
            yield f'{path}.pretrained=True', str(node.get('model_name'))
        elif node.get('pretrained'):
            yield f'{path}.pretrained', str(node['pretrained'])
    items = node.items() if isinstance(node, dict) else enumerate(node)
    for key, value in items:
        if isinstance(value, (dict, list, tuple)):
            yield from _sources_in(value, f'{path}.{key}')


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


def widened(weight: Tensor, bands: int, mode: str) -> Tensor:
    """Weights (O, bands, h, w) of a convolution made of those for fewer or more channels.

    - ``'repeat'``: the channels in turn (as timm does it), ``'mean'``: their mean for every band;
      both multiplied by the ratio of the numbers, so that an input of equal bands gives the same.
    - ``'zero'``: the channels for the first bands, 0 for the others, which are learned.

    Raises:
        ValueError: The mode is none of these, or ``'zero'`` has to drop channels.
    """
    check_choice('widen_input', mode, WIDENINGS)
    known = weight.shape[1]
    if mode == 'zero':
        if bands < known:
            raise ValueError(
                f"`widen_input` is 'zero', but images have {bands} bands and the weights {known}: "
                "take 'repeat' or 'mean'"
            )
        return torch.cat(
            [weight, weight.new_zeros(len(weight), bands - known, *weight.shape[2:])], 1
        )
    if mode == 'mean':
        weight = weight.mean(dim=1, keepdim=True).expand_as(weight)
    return weight[:, [band % known for band in range(bands)]] * (known / bands)


@contextmanager
def widened_input(model: nn.Module, mode: Optional[str]) -> Iterator[None]:
    """Widen what is loaded into convolutions for another number of bands inside the block.

    It concerns weights for one or three channels that differ in nothing else. None changes nothing.
    """

    def widen(module, state_dict, prefix, *_) -> None:
        found, own = state_dict.get(f'{prefix}weight'), module.weight
        if not isinstance(found, Tensor) or found.ndim != 4 or found.shape[1] not in (1, 3):
            return
        if found.shape[1] != own.shape[1] and (len(found), *found.shape[2:]) == (
            len(own),
            *own.shape[2:],
        ):
            state_dict[f'{prefix}weight'] = widened(found, own.shape[1], mode)
            print_log(
                f'{prefix}weight: {found.shape[1]} input channels became {own.shape[1]} '
                f'(widen_input={mode!r})',
                'current',
            )

    if mode is not None:
        check_choice('widen_input', mode, WIDENINGS)
    layers = [each for each in model.modules() if isinstance(each, nn.Conv2d) and mode]
    handles = [each._register_load_state_dict_pre_hook(widen, with_module=True) for each in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


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
    bands = own(found.group(1) for found in map(_OTHER_BANDS.match, loading.errors) if found)
    surplus = own(key for key in loading.unexpected if not key.endswith('.num_batches_tracked'))
    missing = [key for key in own(loading.missing) if key in weights]
    return Fit(len(weights), missing, own(errors), surplus, bands)


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
    if fit.bands:
        return (
            f'{origin} does not fit {what}: {listed(fit.bands, 4)} takes another number of image '
            f'bands. Say what the weights of the bands are to be made of: widen_input={WIDENINGS} '
            'in the config, one of them, or --cfg-options widen_input=repeat'
        )
    example = sorted(parts) if len(parts) < 5 else ['decode_head.conv_seg']
    return (
        f'{origin} does not fit {what}: {matched} of {fit.total} weights match; '
        f'{"; ".join(found)}. Is it the right file? If a part may differ on purpose, such as a '
        f'head with other classes, name it: allow_unmatched={example} in the config, or '
        f'--cfg-options allow_unmatched="{example}"'
    )


def _warn(message: str) -> None:
    print_log(message, logger='current', level=logging.WARNING)
