"""Train a segmentor or a classifier.

Usage::

python tools/train.py CONFIG
python tools/train.py CONFIG --resume                 # go on where it was interrupted
tools/dist_train.sh CONFIG 4                          # four processes
python tools/train.py CONFIG --print-config           # all that will be trained, and exit
python tools/train.py CONFIG --list-stages            # plan and state of mutual training
python tools/train.py CONFIG --stage round_2.a        # one stage of it
python tools/train.py CONFIG --redo round_1.a         # again from there on

Any config of mmseg with a method, and a folder of images of which some have masks::

python tools/train.py CONFIG --method mean_teacher --unlabeled FOLDER_OR_LIST
python tools/train.py --data FOLDER --classes background,polyp
"""

import argparse
import contextlib
import json
import os
import os.path as osp
import sys
from pathlib import Path
from typing import Dict

from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.runner import Runner

# What packages print while they are imported is no part of a printed config.
with contextlib.redirect_stdout(sys.stderr):
    import mmdmt  # noqa: F401  (says what to install when something is missing)
    from mmdmt.checkpoint import find_latest_valid_checkpoint
    from mmdmt.checks import refuse_unknown_keys
    from mmdmt.composition import compose_method
    from mmdmt.config import merge_options, resolve_config
    from mmdmt.datasets.splits.files import read_list
    from mmdmt.engine.own_data import config_of_folder, method_of_folder
    from mmdmt.engine.runners import MutualTrainingRunner, SemiRunner
    from mmdmt.engine.runners.work_dir import only_run
    from mmdmt.engine.screen import be_quiet
    from mmdmt.registry import RUNNERS
    from mmdmt.weights import MissingWeightsError

#: What a config may hold that names a folder of images, as options of the command line.
REQUEST_KEYS = ('data', 'classes', 'method', 'labels', 'mask_values', 'work_dir', 'method_options')
#: With fewer validation images the order of two scores may well be chance.
FEW_IMAGES = 20


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Train a segmentor or a classifier')
    parser.add_argument('config', nargs='?', help='config file')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints')
    _add_method_options(parser)
    _add_folder_options(parser)
    _add_stage_options(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from this checkpoint; without a value from the newest complete one of the '
        'work dir, or start if there is none',
    )
    parser.add_argument(
        '--print-config',
        action='store_true',
        help='print the config with every setting in its place, or that of --stage, and exit; the '
        'text is a config of its own',
    )
    parser.add_argument(
        '--amp',
        action='store_true',
        help='mixed precision in training, validation and labeling; bfloat16 without a GPU',
    )
    parser.add_argument(
        '--seed',
        type=int,
        help='overrides randomness.seed; members of mutual training add their own seed to it',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='append',
        default=[],
        metavar='PATH',
        help='a checkpoint that may run code while it is loaded; can be given several times',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value, nested keys with dots, lists as '
        'key="[a,b]"',
    )
    _add_process_options(parser)
    args = parser.parse_args()
    if (args.config is None) == (args.data is None):
        parser.error('give a config, or a folder of images as --data FOLDER')
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def _add_process_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--verbose',
        action='store_true',
        help='print all that is logged; else what is not needed is in the log file alone',
    )
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='launcher'
    )
    # torch.distributed.launch passes it; torchrun sets the variable.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0)


def _add_stage_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        '--stage', help='run only this stage of mutual training, such as round_2.a or stage_2_a'
    )
    parser.add_argument(
        '--list-stages', action='store_true', help='print the stages with their state, and exit'
    )
    parser.add_argument(
        '--redo',
        metavar='STAGE',
        help='put this stage of mutual training, and all that are made from it, into '
        'WORK_DIR/replaced, and make them again',
    )


def _add_method_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('composing a method with any config (docs/any_config.md)')
    group.add_argument(
        '--method',
        help='mean_teacher, unimatch, dual_teacher, dmt, st_plus_plus, ..., or supervised: labeled '
        'images alone; with --data also auto (default)',
    )
    group.add_argument(
        '--unlabeled',
        metavar='FOLDER_OR_LIST',
        help='unlabeled images: a folder, or a list of names or files; by default the training '
        'images that --labeled does not name',
    )
    group.add_argument(
        '--labeled', metavar='LIST', help='which training images of the config are labeled'
    )
    group.add_argument(
        '--method-options', nargs='+', action=DictAction, help='settings of the method: key=value'
    )


def _add_folder_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group('training on a folder without a config (docs/own_data.md)')
    group.add_argument('--data', metavar='FOLDER', help='images, and masks of some of them')
    group.add_argument('--classes', help='names of the classes in the order of their mask values')
    group.add_argument(
        '--labels', type=int, help='draw so many labeled images; others are unlabeled'
    )
    group.add_argument(
        '--mask-values',
        nargs='+',
        metavar='VALUE',
        help='value of each class in the masks, such as 0 255, or its color, such as 0,0,0 255,0,0 '
        '(default: as they are found)',
    )


def enable_amp(cfg: Config) -> None:
    """Switch training, validation and labeling to mixed precision, as this machine can do it.

    ``val_cfg.fp16`` and ``mutual.labeling.amp`` keep what the config sets.
    """
    kind = cfg.optim_wrapper.get('type', 'OptimWrapper')
    if kind == 'OptimWrapper':
        on_cpu = get_device() == 'cpu'
        kind = 'mmdmt.CPUAmpOptimWrapper' if on_cpu else 'AmpOptimWrapper'
        cfg.optim_wrapper.update(dict(type=kind), **({} if on_cpu else dict(loss_scale='dynamic')))
    elif kind not in ('AmpOptimWrapper', 'mmdmt.CPUAmpOptimWrapper'):
        raise ValueError(f'--amp works with optim_wrapper.type=OptimWrapper, not with {kind}')
    if cfg.get('val_cfg'):
        cfg.val_cfg.setdefault('fp16', True)
    if 'mutual' in cfg and cfg.mutual.get('task') != 'classification':
        cfg.mutual.setdefault('labeling', {}).setdefault('amp', True)


def set_resume(cfg: Config, resume: str) -> None:
    """Write ``--resume`` into the config."""
    cfg.resume = True
    if resume != 'auto':
        cfg.load_from = resume
    elif cfg.get('load_from') is not None:
        # mmengine would resume from `load_from`, which here are the weights to start with.
        if find_latest_valid_checkpoint(cfg.work_dir) is None:
            cfg.resume = False
        else:
            cfg.load_from = None


def with_method(cfg: Config, args: argparse.Namespace) -> Config:
    """Apply ``--cfg-options``, and ``--method`` with its data."""
    options = args.cfg_options or {}
    if args.method:
        own = dict(unlabeled=args.unlabeled, labeled=args.labeled)
        return compose_method(
            cfg, args.method, **own, method_options=args.method_options, options=options
        )
    for key in ('unlabeled', 'labeled', 'method_options'):
        if getattr(args, key):
            raise ValueError(f'--{key.replace("_", "-")} needs --method')
    if options:
        merge_options(cfg, options)
    return cfg


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it."""
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        name = osp.splitext(osp.basename(args.config))[0]
        cfg.work_dir = osp.join('work_dirs', f'{name}_{args.method}' if args.method else name)
    cfg = with_method(cfg, args)
    if args.data:  # several runs of one process
        cfg.experiment_name = f'{args.method}_{os.getpid()}'
    if args.amp:
        enable_amp(cfg)
    if args.seed is not None:
        cfg.randomness = dict(cfg.get('randomness', {}), seed=args.seed)
    if args.stage or args.list_stages or args.redo:
        if 'mutual' not in cfg:
            raise ValueError(
                f'{args.config} has no `mutual`: --stage, --list-stages and --redo need it'
            )
        cfg.stage = args.stage
    if 'mutual' not in cfg and args.resume is not None:
        set_resume(cfg, args.resume)
    elif args.resume not in (None, 'auto'):
        raise ValueError(
            f'--resume {args.resume}: mutual training always goes on from stages.json of its '
            'work dir; leave the checkpoint out, or use --redo STAGE'
        )
    cfg.trusted_checkpoints = [*cfg.get('trusted_checkpoints', []), *args.trust_checkpoint]
    return cfg


def build_runner(cfg: Config) -> Runner:
    """Build the runner that the config asks for, ``mmdmt.SemiRunner`` by default."""
    cfg.setdefault('runner_type', 'mmdmt.SemiRunner')
    if cfg.get('visualizer') and 'experiment_name' in cfg:
        cfg.visualizer.name = cfg.experiment_name  # mmengine keeps one of a name in a process
    return RUNNERS.build(cfg)


def config_text(cfg: Config) -> str:
    """What is trained, as the text of a config: the whole run, or the stage ``cfg.stage``."""
    stage = cfg.pop('stage', None)
    if stage is None:
        return resolve_config(cfg).pretty_text
    stage_cfg = MutualTrainingRunner(cfg).stage_config(stage)
    stage_cfg.setdefault('runner_type', 'mmdmt.SemiRunner')
    return stage_cfg.pretty_text


def read_request(args: argparse.Namespace) -> argparse.Namespace:
    """Take the options of ``--data`` from a config that has them instead of a model.

    Raises:
        ValueError: If it has another key.
    """
    request = Config.fromfile(args.config) if args.config else {}
    if 'data' not in request or 'model' in request:
        return args
    refuse_unknown_keys(args.config, request, REQUEST_KEYS)
    args.work_dir = (
        args.work_dir or osp.splitext(osp.join('work_dirs', osp.basename(args.config)))[0]
    )
    args.config = None
    for key, value in request.items():
        given = getattr(args, key, None)
        setattr(args, key, value if given is None else given)
    return args


def train_folder(args: argparse.Namespace) -> None:
    """Train on a folder: labeled images alone, then a method, in folders of one work dir."""
    name = osp.basename(osp.abspath(args.data))
    work_dir = args.work_dir or osp.join('work_dirs', name)
    classes = args.classes.split(',') if isinstance(args.classes, str) else args.classes
    options = args.cfg_options or {}
    more = args.unlabeled if args.unlabeled and osp.isdir(args.unlabeled) else None
    args.unlabeled = None if more else args.unlabeled  # a list replaces what the folder has
    alone = args.method == 'supervised' or bool(args.unlabeled)
    chosen = (classes, args.labels, args.mask_values, options, more, alone)
    config = config_of_folder(args.data, work_dir, *chosen)
    length = options.get('max_iters')
    method, settings, why = method_of_folder(config, args.method or 'auto', length)
    first = (
        'labeled images alone' if method == 'supervised' else f'labeled images alone, then {method}'
    )
    print(f'to train: {first} ({why})', file=sys.stderr)
    runs = {}
    for each in dict.fromkeys(['supervised', method]):
        own = dict(settings, **(args.method_options or {})) if each == method else None
        run = argparse.Namespace(**vars(args))
        run.config, run.method, run.method_options = config, each, own
        run.work_dir = runs[each] = osp.join(work_dir, each)
        if not args.print_config:
            train(run)
        elif each == method:
            print_config(run)
    if not args.print_config and int(os.environ.get('RANK', 0)) == 0:
        print(summary(runs, len(read_list(Config.fromfile(config).val_list))))
        print(write_report_of(runs, osp.join(work_dir, 'report.html')))


def summary(runs: Dict[str, str], images: int) -> str:
    """A table of the final metrics of some work dirs, by name, and how to predict with the best.

    ``images`` is how many there are to validate on.
    """
    rows, scores = [], {}
    for name, work_dir in runs.items():
        path = Path(work_dir) / 'final.json'
        final = json.loads(path.read_text(encoding='utf-8')) if path.is_file() else {}
        numbers = {k: v for k, v in final.get('metrics', {}).items() if isinstance(v, (int, float))}
        scores[work_dir] = numbers.get('mIoU', -1.0)
        shown = [f'{key} {numbers[key]:.2f}' for key in ('mIoU', 'mAcc', 'aAcc') if key in numbers]
        rows.append(f'  {name:<16} {"  ".join(shown) or "no final.json"}')
    best = max(scores, key=lambda work_dir: scores[work_dir])
    command = f'python tools/predict.py {best} FOLDER_OF_IMAGES --out predictions'
    few = ', too few to tell a few points from chance' if images < FEW_IMAGES else ''
    head = f'On the validation images ({images}{few}):'
    return '\n'.join([head, *rows, f'Predict with\n  {command}'])


def write_report_of(runs: Dict[str, str], path: str) -> str:
    """Write the report of some work dirs, by name; say where it is, or why there is none."""
    try:
        from mmdmt.evaluation.report import write_report  # needs optional packages
    except ImportError as error:
        return f'No report ({error}): pip install mmdmt[optional]'
    write_report([f'{name}={work_dir}' for name, work_dir in runs.items()], path)
    return f'Report: {path}'


def main() -> None:
    """Train."""
    args = read_request(parse_args())
    if args.print_config and not args.data:
        print_config(args)
        return
    if not args.verbose:
        be_quiet()
    try:
        train_folder(args) if args.data else train(args)
    except MissingWeightsError as error:  # a traceback would bury it
        sys.exit(f'{type(error).__name__}: {error}')


def print_config(args: argparse.Namespace) -> None:
    """Print what would be trained."""
    with contextlib.redirect_stdout(sys.stderr):
        text = config_text(load_config(args))
    print(text)


def train(args: argparse.Namespace) -> None:
    """Do what the command line asks for."""
    runner = build_runner(load_config(args))
    if args.list_stages:
        print(runner.describe())
        return
    if args.redo:
        runner.redo(args.redo)
    own = isinstance(runner, (SemiRunner, MutualTrainingRunner))  # they see to it themselves
    with contextlib.nullcontext() if own else only_run(runner):
        runner.train()


if __name__ == '__main__':
    main()
