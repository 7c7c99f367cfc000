"""What all exports do: read a trained checkpoint, clean its config, write the plain pair."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

from mmengine.config import Config
from mmengine.utils import import_modules_from_strings
from torch import Tensor

from mmdmt.checkpoint import (
    is_trusted,
    load_checkpoint_file,
    read_stored_config,
    safe_loading,
    save_atomically,
)
from mmdmt.config import resolve_config
from mmdmt.export.stored_types import SCOPES, check_scope, check_stored_config, packages_of
from mmdmt.export.temperature import scale_logits
from mmdmt.finite import refuse_non_finite
from mmdmt.registry import MODELS

PathLike = Union[str, Path]

_FETCHING = ('TIMMBackbone', 'TIMMVisionTransformer')  # by default
_SOURCES = ('file', 'url', 'hf_hub_id')  # of timm's weights


class Trained(NamedTuple):
    """A checkpoint of a runner with its config.

    Attributes:
        path: The file.
        content: What it holds.
        cfg: The config.
        vouched: Whether somebody stands up for what the config asks for: the user, who named the
            config file or trusts the checkpoint.
    """

    path: PathLike
    content: dict
    cfg: Config
    vouched: bool


def read_trained(
    checkpoint: PathLike, config: Optional[PathLike] = None, trusted: Sequence[PathLike] = ()
) -> Trained:
    """Load a runner's checkpoint with the config it was trained with.

    Args:
        checkpoint: The file.
        config: Config file; defaults to the text in the checkpoint, which is not executed.
        trusted: Checkpoints that may be unpickled, and build what they name, without restrictions.

    Raises:
        ValueError: The checkpoint has no weights, or no config and none is named.
        UntrustedCheckpointError: It could run code.
        NonFiniteError: A weight is NaN or infinite.
    """
    loaded = load_checkpoint_file(checkpoint, trusted=trusted)
    if 'state_dict' not in loaded:
        raise ValueError(f'{checkpoint} has no state_dict: it was not written by a runner')
    refuse_non_finite(loaded['state_dict'], f'checkpoint {checkpoint}')
    if config is not None:
        return Trained(checkpoint, loaded, resolve_config(Config.fromfile(config)), True)
    text = loaded.get('meta', {}).get('cfg')
    if not text:
        raise ValueError(f'{checkpoint} stores no config: name the config file')
    found = Trained(checkpoint, loaded, read_stored_config(text), is_trusted(checkpoint, trusted))
    if not found.vouched:
        check_scope(found.cfg.get('default_scope', 'mmseg'), checkpoint)
    elif found.cfg.get('custom_imports'):
        import_modules_from_strings(**found.cfg.custom_imports)
    return found


def write_plain(
    stem: Path,
    plain: Config,
    trained: Trained,
    weights: Dict[str, Tensor],
    dataset_meta: dict,
    what: str,
    temperature: Optional[float] = None,
) -> Tuple[Path, Path]:
    """Write config and weights as ``<stem>.py`` and ``<stem>.pth`` if they fit.

    Args:
        stem: Path of the files without their suffixes.
        plain: The config.
        trained: What it was made from.
        weights: State dict; what the model of the config does not have is left out.
        dataset_meta: Classes and palette, which inferencers read from the checkpoint.
        what: What the weights are, for the message.
        temperature: What the logits of a segmentor are divided by, if by anything.

    Raises:
        ValueError: Weights are missing or have another shape, or cannot hold the temperature.
        UntrustedCheckpointError: The config asks for what only a trusted checkpoint may.
    """
    if not trained.vouched:
        check_stored_config(plain, trained.path)
    with safe_loading():
        model = MODELS.build(copy.deepcopy(plain.model))
    expected = model.state_dict()
    missing = [key for key in expected if key not in weights]
    given = {key: weights[key] for key in expected if key in weights}
    differing = [key for key, value in given.items() if value.shape != expected[key].shape]
    if missing or differing:
        raise ValueError(
            f'{what} does not fit the config: {len(missing)} weights are missing '
            f'{missing[:3]}, {len(differing)} have another shape {differing[:3]}'
        )
    if temperature is not None:
        given = scale_logits(model, plain.model, given, temperature)
        plain.temperature = plain.get('temperature', 1.0) * temperature
    stem.parent.mkdir(parents=True, exist_ok=True)
    meta = {'dataset_meta': dataset_meta, 'cfg': plain.pretty_text}
    # Copies, since a view would be saved with the storage of all networks.
    state_dict = {key: value.detach().clone() for key, value in given.items()}
    save_atomically({'meta': meta, 'state_dict': state_dict}, stem.with_suffix('.pth'))
    plain.dump(stem.with_suffix('.py'))
    return stem.with_suffix('.py'), stem.with_suffix('.pth')


def dicts_in(value: Any) -> Iterator[dict]:
    """All dicts in nested dicts, lists and tuples, the outermost first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    for child in value if isinstance(value, (list, tuple)) else ():
        yield from dicts_in(child)


def foreign_types(cfg: Union[Config, dict]) -> List[str]:
    """Types of mmdmt in a config."""
    cfg = cfg.to_dict() if isinstance(cfg, Config) else cfg
    kinds = (str(part.get('type', '')) for part in dicts_in(cfg))
    return sorted({kind for kind in kinds if kind.startswith('mmdmt.')})


def with_imports(plain: dict, trained: dict, own: str) -> Config:
    """The config with the imports of the trained one that it needs; ``own`` is this package's."""
    imports = (trained.get('custom_imports') or {}).get('imports', [])
    imports = [imports] if isinstance(imports, str) else imports
    needed = {*SCOPES, *packages_of(plain)} - {'mmdmt'}
    imports = [name for name in imports if name.split('.')[0] in needed]
    if foreign_types(plain):
        imports.append(own)
    if imports:
        plain = dict(plain, custom_imports=dict(imports=imports, allow_failed_imports=False))
    return Config(plain)


def keep_local_backends(plain: dict) -> None:
    """Write what is drawn to the work dir alone: not to files or services that training named."""
    for part in (plain, plain.get('visualizer')):
        if isinstance(part, dict) and 'vis_backends' in part:
            part['vis_backends'] = [dict(type='LocalVisBackend')]


def forget_pretrained(model: dict) -> None:
    """Do not load initial weights that the checkpoint replaces."""
    for part in dicts_in(model):
        if 'pretrained' in part:
            part['pretrained'] = False if isinstance(part['pretrained'], bool) else None
        if str(part.get('type')).split('.')[-1] in _FETCHING:
            part.update(pretrained=False)
            part.pop('checkpoint_path', None)
            overlay = part.get('pretrained_cfg_overlay')
            for key in _SOURCES if isinstance(overlay, dict) else ():
                overlay.pop(key, None)
        init_cfg = part.get('init_cfg')
        steps = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
        kinds = [str(step.get('type')).split('.')[-1] for step in steps if isinstance(step, dict)]
        if 'Pretrained' in kinds:
            part['init_cfg'] = None
