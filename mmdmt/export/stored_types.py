"""What a config out of a checkpoint may ask for: registered types, and no files of this machine.

mmengine imports any dotted ``type`` and calls it, so that a model built from such a config could
run anything; a config written from it could do so wherever it is used.
"""

import contextlib
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib import import_module
from typing import Any, Optional, Set, Tuple, Union

from mmengine.config import Config
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    EVALUATOR,
    FUNCTIONS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    MODELS,
    TASK_UTILS,
    TRANSFORMS,
    VISBACKENDS,
    VISUALIZERS,
    WEIGHT_INITIALIZERS,
    Registry,
)

from mmdmt.checkpoint import UntrustedCheckpointError

#: Packages whose registries are searched.
SCOPES = ('mmengine', 'mmseg', 'mmpretrain', 'mmdmt')
_MODEL = (MODELS, TASK_UTILS, WEIGHT_INITIALIZERS)
# Registries that a key at the top of an exported config is built from; others build nothing.
_REGISTRIES = dict(
    model=_MODEL,
    tta_model=_MODEL,
    test_pipeline=(TRANSFORMS,),
    tta_pipeline=(TRANSFORMS,),
    test_dataloader=(DATASETS, DATA_SAMPLERS, TRANSFORMS, FUNCTIONS),
    test_evaluator=(METRICS, EVALUATOR),
    test_cfg=(LOOPS,),
    default_hooks=(HOOKS,),
    visualizer=(VISUALIZERS, VISBACKENDS),
    vis_backends=(VISBACKENDS,),
    log_processor=(LOG_PROCESSORS,),
)
# Registered, but they import what their settings name, unpickle files, or fetch code.
_RUNNING = (
    'mmseg.models.backbones.vpd',
    'mmpretrain.models.multimodal',
    'mmpretrain.models.retrievers',
    'mmpretrain.models.classifiers.hugging_face',
    'mmpretrain.models.utils.huggingface',
)
# Settings that mmcv, mmseg and mmpretrain look up as they do `type`, and what they do not look up.
_LIKE_TYPE, _NO_TYPE = ('conv_type', 'norm_layer', 'padding_mode'), ('zeros', 'circular', None)
_TRANSFORM_TYPE = 'resize_type'  # of mmcv's RandomResize and RandomChoiceResize
_IMPORTABLE = re.compile(r'[A-Za-z_]\w*(\.[A-Za-z_]\w*)+')
_READ = re.compile(r'checkpoint|ckpt|pretrained|path|file|url|_dir$', re.I)
_WRITTEN = ('save_dir', 'output_dir', 'out_dir', 'out_file_path')
_REMOTE = re.compile(r'://|^(hf[-_]hub|local-dir):', re.I)
_BLANK = re.compile(r'[\x00-\x20]')  # which addresses are read without
# mmpretrain evaluates the text of a `dtype`.
_DTYPE = re.compile(r'\w+')
# Parts whose settings name no data: what looks like a file there is read as code, or written.
_WITHOUT_DATA = ('model', 'tta_model', 'test_evaluator', 'visualizer', 'vis_backends')
# Also of lists of images: mmengine unpickles them by their suffix, and its YAML builds objects.
_CODE = re.compile(r'\.(pkl|pickle|ya?ml|pth?|ckpt|bin|np[yz])$', re.I)
# mmengine writes values by `repr`, but keys as they are; it fills in what stands in {{ }}.
_KEY = re.compile(r'[^\\\'"{}\x00-\x1f\x7f]*')
_PLAIN = (str, int, float, bool, type(None))

Path = Tuple[Union[str, int], ...]


def check_scope(scope: Any, origin: Any) -> None:
    """Refuse a default scope that is no known package, since mmengine imports it.

    Raises:
        UntrustedCheckpointError: It is another one.
    """
    if scope not in SCOPES:
        raise _refusal(origin, ('default_scope',), scope, f'is none of {list(SCOPES)}')


def check_stored_config(cfg: Config, origin: Any) -> None:
    """Refuse a config that was made from one in a checkpoint if it asks for more than it may.

    Args:
        cfg: The config that is to be built or written, without training.
        origin: The checkpoint, for the message.

    Raises:
        UntrustedCheckpointError: It has a type that is not registered where it is used, names a
            file to read or write, or has keys or values that are no plain data.
    """
    cfg = cfg.to_dict()
    check_scope(cfg.get('default_scope', 'mmseg'), origin)
    for path, value, scopes in _walk(cfg, (), {cfg.get('default_scope', 'mmseg'), 'mmengine'}):
        problem = _problem(path, value, scopes)
        if problem:
            raise _refusal(origin, path, value, problem)


def packages_of(cfg: dict) -> Set[str]:
    """Packages that define the types of a config."""
    registries = {registry for each in _REGISTRIES.values() for registry in each}
    own = {cfg.get('default_scope', 'mmseg'), 'mmengine'}
    places = ((value, scopes) for path, value, scopes in _walk(cfg, (), own) if path[-1] == 'type')
    found = (find_registered(str(value), registries, scopes) or value for value, scopes in places)
    return {str(getattr(each, '__module__', each)).split('.')[0] for each in found}


def find_registered(
    kind: str, registries: Iterable[Registry], scopes: Set[str]
) -> Optional[object]:
    """What is registered under a name, which may begin with a scope; nothing else is imported."""
    scope, dot, name = kind.partition('.')
    if dot and scope not in SCOPES:
        return None
    for each in sorted({scope} if dot else scopes):
        for registry in filter(None, (_registry(root, each) for root in registries)):
            found = registry.module_dict.get(name if dot else kind)
            if found is not None:
                return found
    return None


def _registry(root: Registry, scope: str) -> Optional[Registry]:
    """The registry of a known package, with all that the package registers."""
    with contextlib.suppress(ImportError):  # mmpretrain may not be installed
        import_module(f'{scope}.registry')
        registry = root if scope == root.scope else root.children.get(scope)
        if registry is not None:
            registry.import_from_location()
        return registry
    return None


def _walk(node: Any, path: Path, scopes: Set[str]) -> Iterator[Tuple[Path, Any, Set[str]]]:
    """All places of nested dicts and lists, with the scopes that short names may be of there."""
    if isinstance(node, dict):
        prefix, dot, _ = str(node.get('type')).partition('.')
        added = (node.get('_scope_'), prefix if dot else None)
        scopes = scopes | {scope for scope in added if scope in SCOPES}
        items = node.items()
    elif isinstance(node, (list, tuple)):
        items = enumerate(node)
    else:
        return
    for key, value in items:
        yield (*path, key), value, scopes
        yield from _walk(value, (*path, key), scopes)


def _problem(path: Path, value: Any, scopes: Set[str]) -> str:
    """What is wrong with a place of a config, empty if nothing."""
    top, key, in_model = path[0], path[-1], path[0] in ('model', 'tta_model')
    color = isinstance(key, tuple) and all(type(part) is int for part in key)  # of mask_values
    if not color and (not isinstance(key, (str, int)) or not _KEY.fullmatch(str(key))):
        return 'has a key that could end its quotes in a written config'
    if not isinstance(value, (dict, list, tuple, *_PLAIN)) or (
        isinstance(value, str) and '{{' in value
    ):
        return 'is no plain value that a written config could hold'
    if key == '_scope_' and value not in SCOPES:
        return f'is none of {list(SCOPES)}'
    registries = _REGISTRIES.get(top, ())
    looked_up = in_model and key in _LIKE_TYPE and value not in _NO_TYPE
    if key in ('type', _TRANSFORM_TYPE) or looked_up:
        return _type_problem(value, registries, scopes)
    if key in _WRITTEN and value is not None:
        return 'names a place to write to'
    if key == 'sys_path' and value is not None:
        return 'names a folder to import from'
    if not isinstance(value, str):
        return ''
    if (key == 'dtype' and not _DTYPE.fullmatch(value)) or value == 'pickle':
        return 'would be run as code, or make data run as code'
    named = top in _WITHOUT_DATA and value and _READ.search(str(key))
    if named or _REMOTE.search(_BLANK.sub('', value)) or _CODE.search(value.strip()):
        return 'names an address, or a file that could hold code or be written over'
    if not in_model:
        return ''
    # Some parts look names up under keys of their own. Names of timm's networks have dots.
    suspect = key != 'model_name' and _IMPORTABLE.fullmatch(value)
    return _type_problem(value, registries, scopes) if suspect else ''


def _type_problem(kind: Any, registries: Sequence[Registry], scopes: Set[str]) -> str:
    found = find_registered(kind, registries, scopes) if isinstance(kind, str) else None
    if found is None:
        return 'is not registered there, so that it could be any code'
    module = getattr(found, '__module__', '')
    if MODELS in registries and (not inspect.isclass(found) or module.startswith(_RUNNING)):
        return 'can fetch or unpickle code that its settings name'
    return ''


def _refusal(origin: Any, path: Path, value: Any, problem: str) -> UntrustedCheckpointError:
    name = '.'.join(map(str, path))
    return UntrustedCheckpointError(
        f'{origin}: the config stored in it sets {name}={value!r}, which {problem}. Nothing was '
        'built from it. Name the config file it was trained with (--config), or, if you trust '
        f'its source, pass --trust-checkpoint (trusted=[{str(origin)!r}]).'
    )
