"""Fit a temperature to the validation images, so that confidence means accuracy.

Usage::

python tools/analysis_tools/calibrate.py CONFIG CHECKPOINT
python tools/analysis_tools/calibrate.py CONFIG CHECKPOINT --network student --test
python tools/analysis_tools/calibrate.py CONFIG CHECKPOINT --export DIR

The temperature T minimizes the negative log-likelihood of softmax(logits / T) over a seeded sample
of the pixels of every image; what is printed, before and after, is of all pixels. It is written to
CHECKPOINT.temperature.json (without .pth), where
`tools/model_converters/export_segmentor.py CHECKPOINT --temperature auto` finds it. Classes that
are predicted do not change. Fit it to images that are not those you report: to val, not to test.
"""

import argparse
import json
import os.path as osp
from collections.abc import Sequence
from typing import Any, Dict, List, Optional

from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from prettytable import PrettyTable

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checkpoint import checkpoint_identity, load_checkpoint_file
from mmdmt.config import is_classification, merge_options, resolve_config
from mmdmt.export.segmentor import export_segmentor, select_network
from mmdmt.export.temperature import temperature_file
from mmdmt.files import write_text_atomically
from mmdmt.registry import LOOPS, RUNNERS

KEYS = ('ECE', 'cwECE', 'NLL', 'Brier')


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Fit a temperature to the validation images')
    parser.add_argument('config', help='config with val_dataloader')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--network',
        default='auto',
        help='network of an online method (default: the one that is exported)',
    )
    parser.add_argument('--test', action='store_true', help='show what it does on test, too')
    parser.add_argument(
        '--pixels', type=int, default=2**14, help='pixels of an image that are drawn, at most'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the drawing')
    parser.add_argument('--out', help='file of the temperature (default: beside the checkpoint)')
    parser.add_argument(
        '--export', metavar='DIR', help='write a plain, calibrated mmseg config and checkpoint'
    )
    parser.add_argument('--work-dir', help='folder of the log')
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='let CHECKPOINT run code while it is loaded, because you trust who made it',
    )
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings of the config'
    )
    args = parser.parse_args(argv)
    args.trusted = [args.checkpoint] if args.trust_checkpoint else []
    args.out = args.out or str(temperature_file(args.checkpoint))
    return args


def load_config(args: argparse.Namespace) -> Config:
    """The config, to be tested on the validation images by a plain run."""
    cfg = Config.fromfile(args.config)
    cfg.pop('allow_unmatched', None)
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    cfg = resolve_config(cfg)
    if is_classification(cfg) or not cfg.get('val_dataloader'):
        raise ValueError(
            f'{args.config} needs a segmentor and `val_dataloader`, which is fitted to'
        )
    name = osp.splitext(osp.basename(args.config))[0]
    cfg.work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', name)
    cfg.update(runner_type='mmdmt.SemiRunner', load_from=args.checkpoint, resume=False)
    cfg.trusted_checkpoints = [*cfg.get('trusted_checkpoints', []), *args.trusted]
    return cfg


def reliability(prefix: str, temperature: float = 1.0) -> Dict[str, Any]:
    """Config of the metric at a temperature."""
    return dict(
        type='mmdmt.ReliabilityMetric',
        prefix=prefix,
        temperature=temperature,
        boundary_ratio=None,
    )


def evaluate(runner: Runner, loader: dict, metrics: List[dict]) -> Dict[str, float]:
    """Metrics of the images of a loader."""
    loop = dict(type='TestLoop', dataloader=loader, evaluator=metrics)
    return LOOPS.build(loop, default_args=dict(runner=runner)).run()


def measure(cfg: Config, args: argparse.Namespace) -> Dict[str, Any]:
    """Fit the temperature; metrics before and after, on all pixels.

    Returns:
        dict: ``temperature``; ``val``, ``test`` with ``before`` and ``after`` each.
    """
    loaders = dict(val=cfg.val_dataloader, test=cfg.get('test_dataloader'))
    sample = dict(type='mmdmt.TemperatureMetric', prefix='fit', pixels=args.pixels, seed=args.seed)
    cfg.update(
        test_dataloader=loaders['val'],
        test_evaluator=[sample, reliability('before')],
        test_cfg=dict(type='TestLoop'),
    )
    runner = RUNNERS.build(cfg)
    found = runner.test()
    temperature = found['fit/temperature']
    found.update(evaluate(runner, loaders['val'], [reliability('after', temperature)]))
    result = dict(temperature=temperature, val=_before_and_after(found))
    if args.test:
        both = [reliability('before'), reliability('after', temperature)]
        result['test'] = _before_and_after(evaluate(runner, loaders['test'], both))
    return result


def _before_and_after(found: Dict[str, float]) -> Dict[str, Dict[str, float]]:
    return {
        when: {key: float(found[f'{when}/{key}']) for key in KEYS} for when in ('before', 'after')
    }


def table(result: Dict[str, Any]) -> str:
    """Both columns for each set of images."""
    text = PrettyTable(['', *KEYS], align='r')
    for part in ('val', 'test'):
        for when, values in result.get(part, {}).items():
            text.add_row([f'{part}, {when}', *(f'{values[key]:.4f}' for key in KEYS)])
    return text.get_string()


def main(argv: Optional[Sequence[str]] = None) -> Dict[str, Any]:
    """Calibrate a checkpoint.

    Args:
        argv: Command line, for calls from Python.

    Returns:
        dict: What the file holds.
    """
    args = parse_args(argv)
    cfg = load_config(args)
    if args.test and not cfg.get('test_dataloader'):
        raise ValueError(f'--test: {args.config} has no `test_dataloader`')
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    state_dict = load_checkpoint_file(args.checkpoint, trusted=args.trusted)['state_dict']
    network = select_network(state_dict, cfg.model, args.network)
    if network:
        cfg.model.predict_on = network
    facts = dict(checkpoint=checkpoint_identity(args.checkpoint), network=network)
    result = dict(**measure(cfg, args), **facts)
    write_text_atomically(args.out, json.dumps(result, indent=1))
    print(table(result))
    print(f'temperature {result["temperature"]:.4f}, written to {args.out}')
    if args.export:
        settings = (args.checkpoint, args.export, args.config, network or 'auto', args.trusted)
        exported = export_segmentor(*settings, result['temperature'])
        print(f'calibrated: {exported.config}, {exported.checkpoint}')
    return result


if __name__ == '__main__':
    main()
