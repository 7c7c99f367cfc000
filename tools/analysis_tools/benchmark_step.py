"""Time of a training step of any method against its bare network passes.

A method needs some passes through its networks; everything else it does in a step (views, mixing,
pseudo-labels, losses of its own, the optimizer, teachers) is overhead. This tool finds out by
itself which passes a step has, and times step and passes in turns, so that other work on the
machine slows both alike::

    python tools/analysis_tools/benchmark_step.py CONFIG
    python tools/analysis_tools/benchmark_step.py CONFIG --size 240 320 --batch-size 8 --threads 1
    python tools/analysis_tools/benchmark_step.py CONFIG --max-overhead 10    # fails above 10 %

A bare pass with gradient is what mmseg needs to train that network on as many labeled images:
forward, loss, backward. A bare pass without gradient is a forward. Images are noise, weights are
random. Skipping of residual blocks is switched off: it would make a step cheaper than its passes.
"""

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Dict, List, NamedTuple, Tuple

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from torch import nn

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.config import resolve_config
from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import SemiSegmentor
from mmdmt.models.methods.base import build_segmentor

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


class Pass(NamedTuple):
    """A pass of images through one network.

    Attributes:
        network: Name of the network.
        images: Shape of the images, (N, 3, H, W).
        gradient: Whether it is followed by a backward pass.
        training: Whether the network is in training mode.
    """

    network: str
    images: Tuple[int, ...]
    gradient: bool
    training: bool

    def __str__(self) -> str:
        """Line of the table."""
        kind = 'forward, loss, backward' if self.gradient else 'forward'
        return f'{self.network}, {self.images[0]} images: {kind}'


class Stopwatch:
    """Adds up the time of named parts.

    Args:
        clock: Function that returns seconds.
        device: Device whose queued work is waited for.
    """

    def __init__(self, clock: Callable[[], float], device: str) -> None:
        self.clock = clock
        self.device = device
        self.seconds: Dict[str, float] = defaultdict(float)

    def now(self) -> float:
        """Seconds, with all work done."""
        if self.device.startswith('cuda'):
            torch.cuda.synchronize()
        return self.clock()

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside the block to a part."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - start

    def watch(self, owner: Any, method: str, name: str) -> None:
        """Count all calls of a method of an object to a part."""
        if hasattr(owner, method):
            original = getattr(owner, method)

            def timed(*args, **kwargs):
                with self.part(name):
                    return original(*args, **kwargs)

            setattr(owner, method, timed)

    def take(self) -> Dict[str, float]:
        """The parts so far; counting starts again."""
        taken, self.seconds = dict(self.seconds), defaultdict(float)
        return taken


# ------------------------------------------------------------------------------ model and batches


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Time a step against its network passes')
    parser.add_argument('config', help='config file of any method or of a baseline')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='default: crop size')
    parser.add_argument('--batch-size', type=int, help='default: that of the config')
    parser.add_argument('--rounds', type=int, default=10, help='measured steps')
    parser.add_argument('--warmup', type=int, default=2, help='steps before')
    parser.add_argument('--device', default=get_device())
    parser.add_argument('--threads', type=int, help='threads of torch on the CPU')
    parser.add_argument(
        '--clock',
        choices=sorted(CLOCKS),
        default='wall',
        help="'cpu' counts this process only: for one thread on a machine with other work",
    )
    parser.add_argument('--max-overhead', type=float, metavar='PERCENT', help='fail above this')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    args = parser.parse_args()
    if args.rounds < 1 or args.warmup < 1:
        parser.error('--rounds and --warmup must be at least 1')
    return args


def read_config(args: argparse.Namespace) -> Config:
    """The config with the size and batch size of the command line."""
    cfg = Config.fromfile(args.config)
    cfg.merge_from_dict(args.cfg_options or {})
    cfg = resolve_config(cfg)
    if args.size:
        cfg.model.data_preprocessor.size = tuple(args.size)
        cfg.model.data_preprocessor.pop('size_divisor', None)
    if cfg.model.data_preprocessor.get('size') is None:
        raise SystemExit('The config has no `model.data_preprocessor.size`: give --size H W')
    cfg.train_dataloader.batch_size = args.batch_size or cfg.train_dataloader.batch_size
    return cfg


def build_model(cfg: Config, device: str) -> BaseSegmentor:
    """The model with random weights, in training mode."""
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = build_segmentor(cfg.model).to(device)
    if cfg.get('channels_last', False):
        model = model.to(memory_format=torch.channels_last)
    if getattr(model, 'sub_model', None) is not None:
        model.sub_model.drop_probs.zero_()
    model.teacher_hook_attached = model.switch_hook_attached = True  # the step below does it
    return model.train()


def images_per_source(cfg: Config) -> List[int]:
    """Labeled and unlabeled images in a batch."""
    sampler = cfg.train_dataloader.get('sampler') or {}
    ratio = list(sampler.get('source_ratio', [1]))
    batch = cfg.train_dataloader.batch_size
    labeled = max(1, round(batch * ratio[0] / sum(ratio)))
    return [labeled, batch - labeled]


def make_batch(counts: List[int], size: Tuple[int, int], num_classes: int) -> dict:
    """Noise as a loader hands it over: uint8 images, labels for the labeled ones."""
    images, samples = [], []
    for index in range(sum(counts)):
        images.append(torch.randint(0, 256, (3, *size), dtype=torch.uint8))
        sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size))
        if index < counts[0]:
            sample.gt_sem_seg = PixelData(data=torch.randint(0, num_classes, (1, *size)))
        samples.append(sample)
    return dict(inputs=images, data_samples=samples)


def networks_of(model: BaseSegmentor) -> Dict[str, BaseSegmentor]:
    """Networks of a method by name, or the model itself."""
    if isinstance(model, SemiSegmentor):
        return {name: model.network(name) for name in model.network_names}
    return {'network': model}


# ------------------------------------------------------------------------------------- measuring


def record_passes(model: BaseSegmentor, step: Callable[[], None]) -> List[Pass]:
    """The passes that one step makes, in their order."""
    passes, handles = [], []
    for name, network in networks_of(model).items():

        def note(module: nn.Module, args: tuple, name: str = name) -> None:
            shape = tuple(args[0].shape)
            passes.append(Pass(name, shape, torch.is_grad_enabled(), module.training))

        handles.append(network.backbone.register_forward_pre_hook(note))
    step()
    for handle in handles:
        handle.remove()
    return passes


def bare_pass(model: BaseSegmentor, one: Pass, device: str) -> Callable[[], None]:
    """A function that makes one pass and nothing else."""
    network = networks_of(model)[one.network]
    images = torch.randn(one.images, device=device)
    labels = torch.randint(0, network.num_classes, (len(images), *one.images[2:]), device=device)
    samples = []
    for label in labels:
        shape = tuple(label.shape)
        sample = SegDataSample(metainfo=dict(ori_shape=shape, img_shape=shape))
        sample.gt_sem_seg = PixelData(data=label[None])
        samples.append(sample)

    def run() -> None:
        network.train(one.training)
        if one.gradient:
            loss, _ = network.parse_losses(network.loss(images, samples))
            loss.backward()
        else:
            with torch.no_grad():
                dense_logits(network, images)

    return run


def watch_parts(model: BaseSegmentor, optim_wrapper: Any, watch: Stopwatch) -> None:
    """Time the parts of a step; forwards are those of backbones, necks and heads."""
    watch.watch(model.data_preprocessor, 'forward', 'views: normalize, augment')
    watch.watch(model, 'loss', 'loss')
    for name, network in networks_of(model).items():
        for child in network.children():
            if child is not network.data_preprocessor:
                watch.watch(child, 'forward', f'forward: {name}')
    watch.watch(optim_wrapper, 'backward', 'backward')
    watch.watch(optim_wrapper, 'step', 'optimizer')
    watch.watch(model, 'update_teachers', 'teachers follow')


def split_loss(parts: Dict[str, float]) -> Dict[str, float]:
    """Replace the time of the whole loss by what is not in a forward."""
    forwards = sum(value for name, value in parts.items() if name.startswith('forward: '))
    parts = dict(parts)
    parts['pseudo-labels, mixing, losses'] = parts.pop('loss', 0.0) - forwards
    return parts


def median(rows: List[Dict[str, float]]) -> Dict[str, float]:
    """Median of each entry, in milliseconds."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: 1e3 * statistics.median(row.get(name, 0.0) for row in rows) for name in names}


class Measured(NamedTuple):
    """Medians in milliseconds.

    Attributes:
        passes: Time of each bare pass by its line of the table.
        parts: Time of each part of a step.
        step: Time of a step.
        ratio: Step over the sum of its passes, median of the rounds.
        ratios: Smallest and largest ratio of a round.
    """

    passes: Dict[str, float]
    parts: Dict[str, float]
    step: float
    ratio: float
    ratios: Tuple[float, float]


def measure(cfg: Config, args: argparse.Namespace) -> Measured:
    """Time step and passes in turns."""
    model = build_model(cfg, args.device)
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    size = tuple(cfg.model.data_preprocessor.size)
    counts = images_per_source(cfg)
    num_classes = next(iter(networks_of(model).values())).num_classes
    watch = Stopwatch(CLOCKS[args.clock], args.device)

    def step() -> float:
        batch = make_batch(counts, size, num_classes)
        model.train()
        start = watch.now()
        model.train_step(batch, optim_wrapper)
        if hasattr(model, 'update_teachers'):
            model.update_teachers()
        seconds = watch.now() - start
        if hasattr(model, 'switch_teacher'):
            model.switch_teacher()  # so that all shifts are in the median
        return seconds

    passes = record_passes(model, step)
    bare = [bare_pass(model, one, args.device) for one in passes]
    watch_parts(model, optim_wrapper, watch)
    rows, sums, steps, parts = [], [], [], []
    for index in range(args.warmup + args.rounds):
        watch.take()
        seconds = step()
        found = split_loss(watch.take())
        times = []
        for run in bare:
            start = watch.now()
            run()
            times.append(watch.now() - start)
            optim_wrapper.zero_grad()
        if index >= args.warmup:
            steps.append(seconds)
            parts.append(found)
            sums.append(sum(times))
            rows.append({f'{i + 1}. {one}': t for i, (one, t) in enumerate(zip(passes, times))})
    ratios = [a / b for a, b in zip(steps, sums)]
    return Measured(
        median(rows),
        median(parts),
        1e3 * statistics.median(steps),
        statistics.median(ratios),
        (min(ratios), max(ratios)),
    )


# ---------------------------------------------------------------------------------------- report


def table(measured: Measured) -> str:
    """The result as text."""
    total = sum(measured.passes.values())
    lines = [f'{"bare passes":<52}{"ms":>10}']
    lines += [f'  {name:<50}{value:>10.1f}' for name, value in measured.passes.items()]
    lines += [f'  {"sum":<50}{total:>10.1f}', '', f'{"step":<52}{"ms":>10}{"share":>9}']
    lines += [
        f'  {name:<50}{value:>10.1f}{value / measured.step:>9.1%}'
        for name, value in measured.parts.items()
    ]
    low, high = (ratio - 1 for ratio in measured.ratios)
    lines += [
        f'  {"whole step":<50}{measured.step:>10.1f}{1:>9.1%}',
        '',
        f'overhead over the bare passes: {measured.ratio - 1:.1%} '
        f'(median of rounds; {low:.1%} to {high:.1%})',
    ]
    return '\n'.join(lines)


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = read_config(args)
    size = tuple(cfg.model.data_preprocessor.size)
    labeled, unlabeled = images_per_source(cfg)
    print(
        f'{args.config}: {labeled} labeled and {unlabeled} unlabeled images of '
        f'{size[0]}x{size[1]} on {args.device}, {torch.get_num_threads()} thread(s), '
        f'{args.clock} clock, {args.rounds} rounds'
    )
    measured = measure(cfg, args)
    print(table(measured))
    if args.max_overhead is not None and 100 * (measured.ratio - 1) > args.max_overhead:
        raise SystemExit(f'The overhead is above {args.max_overhead} %')


if __name__ == '__main__':
    main()
