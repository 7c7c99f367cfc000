"""Runs as the guides start them, made short: a few steps, tiny networks, nothing to fetch."""

import math
import sys
from pathlib import Path

from mmpretrain.datasets import CIFAR10
from tiny_models import tiny_segmentor
from yapf.yapflib import yapf_api

import mmdmt.config
from mmdmt.export.plain import dicts_in

STEPS = 3  # ST++ compares three checkpoints of a stage
ROUNDS = 1
SIZE = (32, 32)
SCALE = (64, 48)
KEPT = ('type', 'data_preprocessor', 'test_cfg')  # of a network
ROUND_LISTS = ('max_iters', 'images')  # of `mutual.round`, one value for each
PREDICTED = ('num_classes', 'out_channels', 'threshold', 'ignore_index', 'loss_decode')

#: What a tool is started with besides; of an option that is given twice the last one counts.
ARGUMENTS = {
    'benchmark_step.py': '--size 32 32 --rounds 1 --warmup 1',
    'benchmark_pseudo_labels.py': '--images 2 --repeats 1',
    'demo.py': '--quick',
    'report.py': '--images 2',
}
#: Of a benchmark that trains: a few steps of two runs.
FEW_RUNS = [
    *('--only', '*/labeled_only/seed_0', '*/mean_teacher/seed_0'),
    *('--cfg-options', 'budget.student_steps=4', 'validations=1'),
]
PROCESSES = '2'
WHOLE = ('estimate_memory.py',)  # nothing of it depends on how long it takes


def short_arguments(argv):
    """Command line of Python, shortened: ``-m MODULE ...`` or ``SCRIPT ...``."""
    if argv[:2] == ['-m', 'torch.distributed.run']:
        place = argv.index('--nproc_per_node') + 1
        return [*argv[:place], PROCESSES, *argv[place + 1 :]]
    if argv[:2] == ['-m', 'pytest']:
        return [*argv[:2], 'tests/test_finite.py']
    name = Path(argv[0]).name
    if '--max-overhead' in argv:  # of an idle machine
        argv = [*argv, '--max-overhead', str(math.inf)]
    if name == 'benchmark.py' and not {'--list', '--summarize'} & set(argv):
        argv = [*argv, *FEW_RUNS]
    if name == 'estimate_memory.py':  # the first one of a folder
        configs = [word for word in argv[1:] if word.endswith('.py')]
        argv = [word for word in argv if word not in configs[1:]]
    return [*argv, *ARGUMENTS.get(name, '').split()]


def shorten_all(script):
    """Let all that resolves a config in this process shorten it; files of CIFAR may be small."""
    # Formatting the text of a config takes half of the time of so short a run.
    yapf_api.FormatCode = lambda text, **options: (text, True)
    CIFAR10._check_integrity = lambda self: True  # against the hashes of the published files
    original = mmdmt.config.resolve_config
    if Path(script).name in WHOLE:
        return

    def resolve_config(cfg):
        return shorten(original(cfg))

    for module in list(sys.modules.values()):
        if getattr(module, 'resolve_config', None) is original:
            module.resolve_config = resolve_config


def shorten(cfg):
    """Shorten a resolved config in place; a second call changes nothing."""
    for part in list(dicts_in(cfg._cfg_dict)):
        _shrink_transform(part)
        if 'backbone' in part and 'decode_head' in part:
            _shrink_segmentor(part)
        if str(part.get('type')).endswith('WideResNet'):
            part.update(depth=10, widen_factor=1)
        if str(part.get('type')).endswith('LinearClsHead'):
            part['in_channels'] = 64
        for key in {'init_cfg', 'pretrained'} & set(part):
            part[key] = False if part[key] is True else None
        if 'num_workers' in part:
            part['num_workers'] = 0
        if part.get('persistent_workers'):
            part['persistent_workers'] = False
    for section in ('train_cfg', 'default_hooks.checkpoint', 'mutual.supervised', 'mutual.round'):
        _shorten_section(cfg, section)
    _shorten_rounds(cfg.get('mutual') or {})
    logger = cfg.get('default_hooks', {}).get('logger')
    for hook in filter(None, [logger, *(cfg.get('custom_hooks') or [])]):
        if hook is logger or 'interval' in hook:
            hook['interval'] = 1
    if cfg.get('param_scheduler'):
        cfg.param_scheduler = []  # warm-ups are longer than this
    return cfg


def _shrink_transform(part):
    kind = str(part.get('type', '')).split('.')[-1]
    if kind in ('RandomCrop', 'CenterCrop') and isinstance(part.get('crop_size'), (tuple, list)):
        part['crop_size'] = tuple(min(pair) for pair in zip(part['crop_size'], SIZE))
    is_sized = kind == 'PadToCrop' or kind.lower().endswith('preprocessor')
    if is_sized and isinstance(part.get('size'), (tuple, list)):
        part['size'] = tuple(min(pair) for pair in zip(part['size'], SIZE))
    if isinstance(part.get('scale'), (tuple, list)):
        part['scale'] = tuple(min(pair) for pair in zip(part['scale'], SCALE))


def _shrink_segmentor(model):
    """A ResNet of two stages for whatever the network was; U-Nets are small."""
    if model['backbone'].get('type') == 'UNet':
        return
    heads = model['decode_head']
    head = heads[-1] if isinstance(heads, (list, tuple)) else heads
    small = tiny_segmentor(auxiliary=bool(model.get('auxiliary_head')))
    for part in (small['decode_head'], small.get('auxiliary_head', {})):
        part.update({key: head[key] for key in PREDICTED if key in head})
    for key in ('neck', 'auxiliary_head'):
        model.pop(key, None)
    for key in set(small) - set(KEPT):
        model[key] = small[key]  # `update` would merge
    if 'Cascade' in model['type']:
        model['type'] = small['type']


def _shorten_section(cfg, path):
    section = cfg
    for key in path.split('.'):
        section = section.get(key) or {}
    for key in {'max_iters', 'val_interval', 'interval'} & set(section):
        steps = section[key]
        section[key] = [STEPS for _ in steps] if isinstance(steps, (list, tuple)) else STEPS


def _shorten_rounds(mutual):
    if 'labeling' in mutual:
        mutual['labeling']['num_workers'] = 0
    for part, key in ((mutual, 'ratios'), *((mutual.get('round', {}), k) for k in ROUND_LISTS)):
        if isinstance(part.get(key), (list, tuple)):
            part[key] = list(part[key])[:ROUNDS]
    if isinstance(mutual.get('select'), (list, tuple)):
        mutual['select'] = list(mutual['select'])[: ROUNDS + 1]
    for member in mutual.get('members', ()):
        member.pop('load_from', None)
        options = member.get('cfg_options') or {}
        for key in [key for key in options if key.split('.')[0] == 'model']:
            del options[key]
