"""Test a checkpoint: metrics, and predictions as label images or as pictures.

Usage::

python tools/test.py CONFIG CHECKPOINT
python tools/test.py CONFIG CHECKPOINT --predict-on student --show-dir pictures
python tools/test.py CONFIG CHECKPOINT --reliability  # calibration, boundaries: docs/reliability.md
"""

import argparse
import contextlib
import os
import os.path as osp
import sys
from typing import List, Sequence

from mmengine.config import Config, DictAction

# What packages print while they are imported is no result.
with contextlib.redirect_stdout(sys.stderr):
    import mmdmt  # noqa: F401  (says what to install when something is missing)
    from mmdmt.config import is_classification, merge_options
    from mmdmt.engine.screen import be_quiet
    from mmdmt.registry import RUNNERS


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Test a segmentor')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument('--work-dir', help='folder of the log and the metrics')
    parser.add_argument('--out', metavar='DIR', help='write predicted label images to this folder')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', metavar='DIR', help='write painted predictions here')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per image with --show')
    parser.add_argument('--tta', action='store_true', help='test-time augmentation')
    parser.add_argument(
        '--reliability',
        action='store_true',
        help='measure calibration, selective prediction and boundaries, too; writes '
        'reliability.json into the work dir',
    )
    parser.add_argument(
        '--predict-on',
        metavar='NETWORK',
        help='network of an online method to test: student, teacher, ...',
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let CHECKPOINT run code while it is loaded, because you trust who made it',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help='override settings of the config: key=value, nested keys with dots, lists as '
        'key="[a,b]"',
    )
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
    args = parser.parse_args()
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def select_network(cfg: Config, name: str) -> None:
    """Make an online method predict with the network ``name``."""
    if 'segmentor' not in cfg.model:
        raise ValueError(
            f'--predict-on {name}: the model of this config ({cfg.model.type}) is a single '
            'network; leave the option out'
        )
    cfg.model.predict_on = name


def draw_predictions(cfg: Config, args: argparse.Namespace) -> None:
    """Turn on the visualization hook."""
    if is_classification(cfg):
        hook = dict(type='VisualizationHook', enable=True, interval=1)
    else:
        hook = dict(type='SegVisualizationHook', draw=True, interval=1)
    if args.show:
        hook.update(show=True, wait_time=args.wait_time)
    cfg.default_hooks.visualization = hook
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def use_tta(cfg: Config) -> None:
    """Wrap the model and the test pipeline for test-time augmentation."""
    if 'tta_model' not in cfg:
        raise KeyError('--tta needs tta_model in the config, such as dict(type="SegTTAModel")')
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = tta_pipeline(cfg.test_dataloader.dataset.pipeline)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
    cfg.model = dict(cfg.tta_model, module=cfg.model)


def tta_pipeline(pipeline: Sequence[dict]) -> List[dict]:
    """Test-time augmentation of a test pipeline of a segmentor: both orientations, three scales.

    Images are varied right before their masks are loaded, which stay as they are.

    Raises:
        KeyError: The pipeline loads no masks.
    """
    kinds = [str(step['type']) for step in pipeline]
    masks = [i for i, kind in enumerate(kinds) if 'LoadAnnotations' in kind or 'LoadMasks' in kind]
    if not masks:
        raise KeyError(f'--tta needs tta_pipeline in the config: {kinds} loads no masks')
    scales = [dict(type='Resize', scale_factor=s, keep_ratio=True) for s in (0.75, 1.0, 1.25)]
    flips = [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)]
    rest = [[step] for step in pipeline[masks[0] :]]
    views = dict(type='TestTimeAug', transforms=[scales, flips, *rest])
    return [*pipeline[: masks[0]], views]


def write_labels(cfg: Config, folder: str) -> None:
    """Make the (first) metric write its label images."""
    if is_classification(cfg):
        raise ValueError('--out writes label images of segmentors; this config has a classifier')
    evaluator = cfg.test_evaluator
    metric = evaluator[0] if isinstance(evaluator, (list, tuple)) else evaluator
    metric.update(output_dir=folder, keep_results=True)


def add_reliability(cfg: Config) -> None:
    """Measure how far confidence can be trusted, beside the metrics of the config."""
    if is_classification(cfg):
        raise ValueError('--reliability is for segmentors; this config has a classifier')
    evaluator = cfg.test_evaluator
    metrics = list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
    path = osp.join(cfg.work_dir, 'reliability.json')
    metrics.append(dict(type='mmdmt.ReliabilityMetric', trimap_width=5, out_file=path))
    cfg.test_evaluator = metrics
    tta_model = cfg.get('tta_model') or {}
    if str(tta_model.get('type')).split('.')[-1] == 'SegTTAModel':  # has logits of the last view
        tta_model.type = 'mmdmt.MeanTTAModel'


def load_config(args: argparse.Namespace) -> Config:
    """Read the config and apply the command line to it."""
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    # Said of the weights that training began with; a part without weights would be tested as it is.
    cfg.pop('allow_unmatched', None)
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    else:  # beside the checkpoint; never in the folder of a run, whose config it would replace
        cfg.work_dir = osp.join(osp.dirname(osp.abspath(args.checkpoint)), 'test')
    # One checkpoint is tested by a plain run, also where the config trains a chain of runs.
    cfg.update(runner_type='mmdmt.SemiRunner', load_from=args.checkpoint, resume=False)
    if args.trust_checkpoint:
        cfg.trusted_checkpoints = [*cfg.get('trusted_checkpoints', []), args.checkpoint]
    if args.predict_on is not None:
        select_network(cfg, args.predict_on)
    if args.show or args.show_dir:
        draw_predictions(cfg, args)
    if args.reliability:
        add_reliability(cfg)
    if args.tta:
        use_tta(cfg)
    if args.out is not None:
        write_labels(cfg, args.out)
    return cfg


def main() -> None:
    """Test."""
    args = parse_args()
    if not args.verbose:
        be_quiet()
    RUNNERS.build(load_config(args)).test()


if __name__ == '__main__':
    main()
