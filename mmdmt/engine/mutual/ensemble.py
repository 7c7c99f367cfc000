"""The members of a finished chain as one network: averaged predictions or averaged weights."""

import copy
import os.path as osp
from typing import Any, Dict, List, Sequence, Union

import torch
from mmengine.config import Config, ConfigDict

from mmdmt.checkpoint import checkpoint_identity, load_checkpoint_file, save_atomically
from mmdmt.checks import refuse_unknown_keys

ENSEMBLE_KEYS = {'predictions', 'weights'}
_TRAINING_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')


def ensemble_kinds(setting: Union[bool, Dict[str, bool]]) -> List[str]:
    """What ``mutual.ensemble`` asks for.

    Args:
        setting (bool | dict): True for averaged predictions, or ``dict(predictions=True,
            weights=True)``.

    Returns:
        list[str]: Of ``'predictions'`` and ``'weights'``.

    Raises:
        ValueError: On unknown keys.
    """
    if not isinstance(setting, dict):
        return ['predictions'] if setting else []
    refuse_unknown_keys('mutual.ensemble', setting, ENSEMBLE_KEYS)
    return [kind for kind in ('predictions', 'weights') if setting.get(kind)]


def ensemble_config(cfg: Config, models: Sequence[dict], kind: str, folder: str) -> Config:
    """Config that tests the members as one.

    Args:
        cfg (Config): The whole config of the chain.
        models (Sequence[dict]): Model configs of the members.
        kind (str): ``'predictions'`` averages probabilities (``mmdmt.EnsembleSegmentor``),
            ``'weights'`` gives the config of the first member.
        folder (str): Work dir of the test.

    Returns:
        Config: Of a run of ``mmdmt.SemiRunner`` that is only tested.

    Raises:
        ValueError: If weights of different networks are to be averaged.
    """
    cfg = copy.deepcopy(cfg)
    # The evaluation protocol is written into the pipelines and the members already.
    for key in (*_TRAINING_KEYS, 'mutual', 'stage', 'evaluation_protocol'):
        cfg.pop(key, None)
    if kind == 'predictions':
        # mmengine would give a preprocessor at the top level of the config to the ensemble, whose
        # members have one each.
        cfg.pop('data_preprocessor', None)
        model = dict(type='mmdmt.EnsembleSegmentor', members=[_plain(model) for model in models])
    else:
        if any(_network(model) != _network(models[0]) for model in models):
            raise ValueError(
                '`mutual.ensemble.weights` averages weights of networks of one kind, but the '
                "members' models differ: use `mutual.ensemble=dict(predictions=True)`"
            )
        model = _plain(models[0])
    cfg._cfg_dict.pop('model')
    cfg.model = ConfigDict(model)
    cfg.update(runner_type='mmdmt.SemiRunner', work_dir=folder, resume=False, load_from=None)
    cfg.merge_from_dict({'default_hooks.checkpoint': None})  # nothing is trained, nothing saved
    return cfg


def merge_checkpoints(paths: Sequence[str], out: str, kind: str, trusted: Sequence = ()) -> None:
    """Write one checkpoint from those of the members.

    Args:
        paths (Sequence[str]): Checkpoints of the members.
        out (str): File to write, atomically.
        kind (str): ``'predictions'`` keeps all weights, under ``members.<i>.``; ``'weights'``
            averages them, integer buffers are those of the first.
        trusted (Sequence[str]): Checkpoints that may hold more than tensors.

    Raises:
        ValueError: If weights to be averaged do not have the same names and shapes.
    """
    states = [_weights(path, trusted) for path in paths]
    if kind == 'predictions':
        merged = {
            f'members.{index}.{key}': value
            for index, state in enumerate(states)
            for key, value in state.items()
        }
    else:
        merged = _average(states, paths)
    meta = dict(members=[osp.basename(path) for path in paths], kind=kind)
    save_atomically(dict(meta=meta, state_dict=merged), out)


def checkpoint_facts(paths: Dict[str, str]) -> Dict[str, str]:
    """What tells the members' checkpoints from others, for the ledger.

    Args:
        paths (dict[str, str]): Checkpoint by member name.

    Returns:
        dict[str, str]: SHA-256 by member name.
    """
    return {name: checkpoint_identity(path)['sha256'] for name, path in paths.items()}


def _weights(path: str, trusted: Sequence) -> Dict[str, torch.Tensor]:
    content = load_checkpoint_file(path, trusted=trusted)
    return content.get('state_dict', content)


def _average(
    states: List[Dict[str, torch.Tensor]], paths: Sequence[str]
) -> Dict[str, torch.Tensor]:
    for state, path in zip(states, paths):
        wrong = [
            key
            for key in {*state, *states[0]}
            if key not in state or key not in states[0] or state[key].shape != states[0][key].shape
        ]
        if wrong:
            raise ValueError(f'the weights of {path} are not those of {paths[0]}: {sorted(wrong)}')
    return {
        key: torch.stack([state[key].double() for state in states]).mean(dim=0).to(value.dtype)
        if value.is_floating_point()
        else value
        for key, value in states[0].items()
    }


def _network(model: Dict[str, Any]) -> Dict[str, Any]:
    """What must be equal for weights to fit: all but where the initial ones came from."""
    model = _plain(model)
    for part in ('backbone', 'decode_head'):
        model.get(part, {}).pop('init_cfg', None)
    return model


def _plain(model: Dict[str, Any]) -> Dict[str, Any]:
    return model.to_dict() if isinstance(model, ConfigDict) else copy.deepcopy(dict(model))
