"""The configs that are shipped, each read once for all tests of a process."""

import copy
import functools
import os
from pathlib import Path
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmdmt.config import resolve_config
from mmdmt.export.plain import dicts_in
from mmdmt.registry import MODELS

CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def names_of(folder):
    """Names of the configs of a folder, as `load` takes them."""
    return sorted(f'{folder}/{path.stem}' for path in (CONFIGS / folder).glob('*.py'))


_file2dict = Config._file2dict


@functools.cache
def _part(path):
    return _file2dict(path)


def _copied_part(filename, *settings, **others):
    """What mmengine reads from a file, once: hundreds of configs have the same bases."""
    content, text, variables = _part(os.path.abspath(filename))
    return _copy_of(content), text, dict(variables)


@functools.cache
def _read(name):
    with mock.patch.object(Config, '_file2dict', _copied_part):
        return Config.fromfile(CONFIGS / f'{name}.py')


def read(name):
    """A config as its file has it, without the suffix: 'dmt/...'."""
    return copy_of(_read(name))


def copy_of(cfg):
    """A config of its own; mmengine's `deepcopy` converts every part again, which takes longer."""
    # Its dicts first: what else a config holds are texts.
    other = copy.copy(cfg)
    object.__setattr__(other, '_cfg_dict', _copy_of(cfg._cfg_dict))
    return other


def _copy_of(node):
    if isinstance(node, dict):
        other = type(node)()
        for key, value in dict.items(node):
            dict.__setitem__(other, key, _copy_of(value))
        return other
    return type(node)(map(_copy_of, node)) if isinstance(node, (list, tuple)) else node


@functools.cache
def _resolve(name):
    return resolve_config(read(name))


def load(name):
    """A config with its settings in their places."""
    return copy_of(_resolve(name))


def without_weights(model):
    """A model config that fetches nothing."""
    model = copy.deepcopy(model)
    for part in dicts_in(model):
        if part.get('type') in ('TIMMBackbone', 'mmdmt.TIMMVisionTransformer'):
            part['pretrained'] = False
        if 'init_cfg' in part:
            part['init_cfg'] = None
    return model


def build(model, scope='mmseg'):
    """Build a model without memory for its weights."""
    rates = mock.patch(  # of stochastic depth, which are read as numbers
        'torch.linspace', lambda start, end, steps, **kwargs: torch.zeros(steps, device='cpu')
    )
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'), rates:
        return MODELS.build(without_weights(model))
