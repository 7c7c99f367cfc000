"""The members of a finished chain as one network: averaged predictions or averaged weights."""

import copy
import os.path as osp
from typing import Any, Dict, List, Optional, Sequence, Union

import torch
from mmengine.config import Config, ConfigDict

from mmdmt.checkpoint import load_checkpoint_file, save_atomically
from mmdmt.checks import refuse_unknown_keys
from mmdmt.finite import refuse_non_finite

ENSEMBLE_KEYS = {'predictions', 'weights'}
_TRAINING_KEYS = ('train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')


def ensemble_kinds(setting: Union[bool, Dict[str, bool]]) -> List[str]:
    """Which of ``'predictions'`` and ``'weights'`` the setting ``mutual.ensemble`` asks for.

    Raises:
        ValueError: On unknown keys.
    """
    if not isinstance(setting, dict):
        return ['predictions'] if setting else []
    refuse_unknown_keys('mutual.ensemble', setting, ENSEMBLE_KEYS)
    return [kind for kind in ('predictions', 'weights') if setting.get(kind)]


def ensemble_config(cfg: Config, models: Sequence[dict], kind: str, folder: str) -> Config:
    """Config of a run of ``mmdmt.SemiRunner`` that tests the members as one.

    Args:
        cfg (Config): The whole config of the chain.
        models (Sequence[dict]): Model configs of the members.
        kind (str): ``'predictions'`` averages probabilities (``mmdmt.EnsembleSegmentor``),
            ``'weights'`` gives the config of the first member.
        folder (str): Work dir of the test.

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
    cfg.chain = dict(ensemble=kind)
    cfg.merge_from_dict({'default_hooks.checkpoint': None})  # nothing is trained, nothing saved
    return cfg


def merge_checkpoints(
    paths: Sequence[str],
    out: str,
    kind: str,
    trusted: Sequence = (),
    cfg: Optional[Config] = None,
) -> None:
    """Write one checkpoint from those of the members.

    Args:
        paths (Sequence[str]): Checkpoints of the members.
        out (str): File to write, atomically.
        kind (str): ``'predictions'`` keeps all weights, under ``members.<i>.``; ``'weights'``
            averages them, integer buffers are those of the first.
        trusted (Sequence[str]): Checkpoints that may hold more than tensors.
        cfg (Config, optional): Of :func:`ensemble_config`, which is stored with the classes of the
            first member, as in any other checkpoint.

    Raises:
        ValueError: If weights to be averaged do not have the same names and shapes.
        NonFiniteError: If a weight is NaN or infinite.
    """
    contents = [load_checkpoint_file(path, trusted=trusted) for path in paths]
    states = [content.get('state_dict', content) for content in contents]
    for state, path in zip(states, paths):
        refuse_non_finite(state, f'the checkpoint of a member, {path},')
    if kind == 'predictions':
        merged = {
            f'members.{index}.{key}': value
            for index, state in enumerate(states)
            for key, value in state.items()
        }
    else:
        merged = _average(states, paths)
    meta = dict(members=[osp.basename(path) for path in paths], kind=kind)
    classes = contents[0].get('meta', {}).get('dataset_meta')
    meta.update(dict(dataset_meta=classes) if classes else {})
    meta.update({} if cfg is None else dict(cfg=cfg.pretty_text))
    save_atomically(dict(meta=meta, state_dict=merged), out)


def _average(
    states: List[Dict[str, torch.Tensor]], paths: Sequence[str]
) -> Dict[str, torch.Tensor]:
    shapes = [{(key, value.shape) for key, value in state.items()} for state in states]
    for other, path in zip(shapes, paths):
        wrong = sorted({key for key, _ in other ^ shapes[0]})
        if wrong:
            raise ValueError(f'the weights of {path} are not those of {paths[0]}: {wrong}')
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
    return ConfigDict(model).to_dict()
