"""Time of a training step of any method against its bare network passes.

A method needs some passes through its networks; everything else it does in a step (views, mixing,
pseudo-labels, losses of its own, the optimizer, teachers) is overhead. This tool finds out by
itself which passes a step has, and times step and passes alternately, so that other work on the
machine slows both alike::

    python tools/analysis_tools/benchmark_step.py CONFIG
    python tools/analysis_tools/benchmark_step.py CONFIG --size 240 320 --batch-size 8 --threads 1
    python tools/analysis_tools/benchmark_step.py CONFIG --max-overhead 10    # fails above 10 %
    python tools/analysis_tools/benchmark_step.py SUPERVISED_CONFIG --method unimatch u2pl

A bare pass with gradient is what mmseg needs to train that network on as many labeled images:
forward, loss, backward. A bare pass without gradient is a forward. Images are noise, weights are
random. Skipping of residual blocks is switched off: it would make a step cheaper than its passes.
Earlier students (PrevMatch) are there from the first step on, and as many label as ever may.
"""

import argparse
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import torch
from mmengine.config import Config, DictAction
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from prettytable import PrettyTable, TableStyle
from torch import nn

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.composition import compose_method
from mmdmt.config import merge_options, resolve_config
from mmdmt.engine.heap import keep_freed_memory
from mmdmt.models.forward import dense_logits
from mmdmt.models.methods import SemiSegmentor
from mmdmt.models.methods.base import build_segmentor
from mmdmt.models.perturbations import perturbed_features
from mmdmt.models.previous import PreviousStudents

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


class Pass(NamedTuple):
    """A pass of images through one network."""

    network: str
    shape: Tuple[int, ...]
    """Of the images, (N, 3, H, W)."""
    gradient: bool
    """Whether it is followed by a backward pass."""
    training: bool
    """Whether the network is in training mode."""
    repeated: int = 0
    """How many of the images pass through the decode head once more, as dropped features do."""

    def __str__(self) -> str:
        """Line of the table."""
        kind = 'forward, loss, backward' if self.gradient else 'forward'
        head = f' (head {self.shape[0] + self.repeated})' if self.repeated else ''
        return f'{self.network}, {self.shape[0]} images{head}: {kind}'


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

            def timed(*args: Any, **kwargs: Any) -> Any:
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
    parser.add_argument(
        '--method',
        nargs='+',
        default=[None],
        metavar='NAME',
        help='methods to compose with the config of a baseline, each measured after the other',
    )
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


def build_model(cfg: Config, args: argparse.Namespace) -> BaseSegmentor:
    """The model with random weights and the size of the command line, in training mode."""
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    model = build_segmentor(cfg.model).to(args.device)
    if cfg.get('channels_last', False):
        model = model.to(memory_format=torch.channels_last)
    if getattr(model, 'sub_model', None) is not None:
        model.sub_model.drop_probs.zero_()
    if isinstance(model, SemiSegmentor):
        model.start_run(args.warmup + args.rounds + 1, [1, 1])
    if hasattr(model, 'shift_iters'):
        model.shift_iters = 1  # so that all shifts are in the median
    if getattr(model, 'previous', None) is not None:
        label_always(model.previous, model.student)
    preprocessor = model.data_preprocessor
    if args.size:
        preprocessor.size, preprocessor.size_divisor = tuple(args.size), None
    if preprocessor.size is None:
        raise SystemExit('The config has no `data_preprocessor.size`: give --size H W')
    return model.train()


def label_always(previous: PreviousStudents, student: BaseSegmentor) -> None:
    """Let as many copies of the student label in each step as may, and take no others."""
    for _ in range(previous.max_labelers):
        previous.take(student)
    previous.every, count = sys.maxsize, len(previous)
    previous.draw = lambda step: (list(range(count)), [1 / count] * count)


def images_per_source(cfg: Config) -> Tuple[int, int]:
    """Labeled and unlabeled images in a batch."""
    ratio = list((cfg.train_dataloader.get('sampler') or {}).get('source_ratio', [1]))
    batch = cfg.train_dataloader.batch_size
    labeled = max(1, round(batch * ratio[0] / sum(ratio)))
    return labeled, batch - labeled


def make_sample(size: Tuple[int, int], num_classes: int = 0) -> SegDataSample:
    """A sample of an image, with random labels if there are classes."""
    sample = SegDataSample(metainfo=dict(ori_shape=size, img_shape=size))
    if num_classes:
        sample.gt_sem_seg = PixelData(data=torch.randint(0, num_classes, (1, *size)))
    return sample


def make_batch(counts: Tuple[int, int], size: Tuple[int, int], num_classes: int) -> dict:
    """Noise as a loader hands it over: uint8 images, labels for the labeled ones."""
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(sum(counts))]
    samples = [make_sample(size, num_classes) for _ in range(counts[0])]
    samples += [make_sample(size) for _ in range(counts[1])]
    return dict(inputs=images, data_samples=samples)


def networks_of(model: BaseSegmentor) -> Dict[str, BaseSegmentor]:
    """Networks of a method by name, or the model itself."""
    if isinstance(model, SemiSegmentor):
        return {name: model.network(name) for name in model.network_names}
    return {'network': model}


# ------------------------------------------------------------------------------------- measuring


def record_passes(model: BaseSegmentor, step: Callable[[], Any]) -> List[Pass]:
    """The passes that one step makes, in their order."""
    passes, handles, heads = [], [], []
    for name, network in networks_of(model).items():

        def note(module: nn.Module, args: tuple, name: str = name) -> None:
            shape = tuple(args[0].shape)
            passes.append(Pass(name, shape, torch.is_grad_enabled(), module.training))

        def note_head(forward: Callable, feats: Any) -> Any:
            count = len(feats[-1] if isinstance(feats, (list, tuple)) else feats)
            repeated = max(0, count - passes[-1].shape[0])
            passes[-1] = passes[-1]._replace(repeated=repeated)
            return forward(feats)

        handles.append(network.backbone.register_forward_pre_hook(note))
        heads.append(network.decode_head)
        network.decode_head.forward = partial(note_head, network.decode_head.forward)
    step()
    for handle in handles:
        handle.remove()
    for head in heads:
        del head.forward
    return passes


def bare_pass(model: BaseSegmentor, one: Pass, device: str) -> Callable[[], None]:
    """A function that makes one pass and nothing else."""
    network = networks_of(model)[one.network]
    images = torch.randn(one.shape, device=device)
    count = len(images) + one.repeated
    samples = [make_sample(one.shape[2:], network.num_classes).to(device) for _ in range(count)]

    def repeat(maps: Sequence[torch.Tensor]) -> List[torch.Tensor]:
        return [torch.cat([each, each[: one.repeated]]) for each in maps]

    def run() -> None:
        network.train(one.training)
        with perturbed_features(network, repeat) if one.repeated else nullcontext():
            if one.gradient:
                loss, _ = network.parse_losses(network.loss(images, samples))
                loss.backward()
            else:
                with torch.no_grad():
                    dense_logits(network, images)

    return run


def watch_parts(model: BaseSegmentor, optim_wrapper: Any, watch: Stopwatch) -> None:
    """Time the parts of a step; forwards are those of backbones, necks and heads."""
    watch.watch(model.data_preprocessor, 'forward', 'preprocessor')
    watch.watch(model, 'loss', 'loss')
    for name, network in networks_of(model).items():
        for child in network.children():
            if child is not network.data_preprocessor:
                watch.watch(child, 'forward', f'forward: {name}')
    watch.watch(optim_wrapper, 'backward', 'backward')
    watch.watch(optim_wrapper, 'step', 'optimizer')
    watch.watch(model, 'after_step', 'teachers follow')


def split_loss(parts: Dict[str, float]) -> Dict[str, float]:
    """Replace the time of the whole loss by what is not in a forward."""
    forwards = sum(value for name, value in parts.items() if name.startswith('forward: '))
    own = parts.pop('loss', 0.0) - forwards
    return {**parts, 'views, pseudo-labels, losses': own}


def medians(rows: List[Dict[str, float]]) -> Dict[str, float]:
    """Median of each entry, in milliseconds."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: 1e3 * statistics.median(row.get(name, 0.0) for row in rows) for name in names}


class Measured(NamedTuple):
    """Medians over the rounds, in milliseconds."""

    passes: Dict[str, float]
    """Time of each bare pass by its line of the table."""
    parts: Dict[str, float]
    """Time of each part of a step."""
    step: float
    """Time of a step."""
    ratios: List[float]
    """Step over the sum of its passes, for each round, sorted."""

    @property
    def overhead(self) -> float:
        """Median of what a step takes more than its passes, relative to them."""
        return statistics.median(self.ratios) - 1


def measure(model: BaseSegmentor, cfg: Config, args: argparse.Namespace) -> Measured:
    """Time step and passes alternately."""
    optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    num_classes = next(iter(networks_of(model).values())).num_classes
    watch = Stopwatch(CLOCKS[args.clock], args.device)

    def step() -> float:
        size = tuple(model.data_preprocessor.size)
        batch = make_batch(images_per_source(cfg), size, num_classes)
        model.train()
        start = watch.now()
        model.train_step(batch, optim_wrapper)
        if isinstance(model, SemiSegmentor):
            model.after_step()
        return watch.now() - start

    passes = record_passes(model, step)
    bare = {f'{i}. {one}': bare_pass(model, one, args.device) for i, one in enumerate(passes, 1)}
    watch_parts(model, optim_wrapper, watch)
    rounds = []
    for _ in range(args.warmup + args.rounds):
        watch.take()
        seconds = step()
        parts = split_loss(watch.take())
        for name, run in bare.items():
            with watch.part(name):
                run()
            optim_wrapper.zero_grad()
        # The runs add to the watched parts, too.
        rounds.append((seconds, parts, {name: watch.seconds[name] for name in bare}))
    steps, parts, times = zip(*rounds[args.warmup :])
    ratios = sorted(step / sum(row.values()) for step, row in zip(steps, times))
    return Measured(medians(times), medians(parts), 1e3 * statistics.median(steps), ratios)


# ---------------------------------------------------------------------------------------- report


def table(titles: List[str], rows: List[list]) -> str:
    """Markdown table of names and numbers."""
    found = PrettyTable(titles, align='r')
    found.set_style(TableStyle.MARKDOWN)
    found.align[titles[0]] = 'l'
    found.add_rows(rows)
    return found.get_string()


def report(measured: Measured) -> str:
    """The result as text."""
    passes = {**measured.passes, 'sum': sum(measured.passes.values())}
    parts = {**measured.parts, 'whole step': measured.step}
    return '\n\n'.join(
        [
            table(['bare passes', 'ms'], [[name, f'{ms:.1f}'] for name, ms in passes.items()]),
            table(
                ['step', 'ms', 'share'],
                [[name, f'{ms:.1f}', f'{ms / measured.step:.1%}'] for name, ms in parts.items()],
            ),
            f'overhead over the bare passes: {spread(measured)}',
        ]
    )


def main() -> None:
    """Measure and print."""
    args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.device == 'cpu':
        keep_freed_memory()  # as runners do
    measured = {}
    for method in args.method:
        measured[method or args.config] = measure_one(args, method)
    if len(measured) > 1:
        rows = [[name, f'{one.step:.1f}', spread(one)] for name, one in measured.items()]
        print('\n' + table(['method', 'step, ms', 'over its bare passes'], rows))
    slow = [name for name, one in measured.items() if is_above(one, args.max_overhead)]
    if slow:
        raise SystemExit(f'The overhead is above {args.max_overhead} %: {", ".join(slow)}')


def measure_one(args: argparse.Namespace, method: Optional[str]) -> Measured:
    """Measure a config, or a method composed with it, and print its passes and parts."""
    cfg = Config.fromfile(args.config)
    merge_options(cfg, args.cfg_options or {})
    if method:
        cfg = compose_method(cfg, method)
    cfg = resolve_config(cfg)
    cfg.train_dataloader.batch_size = args.batch_size or cfg.train_dataloader.batch_size
    model = build_model(cfg, args)
    labeled, unlabeled = images_per_source(cfg)
    height, width = model.data_preprocessor.size
    name = f'{args.config}, {method}' if method else args.config
    print(
        f'\n{name}: {labeled} labeled and {unlabeled} unlabeled images of '
        f'{height}x{width} on {args.device}, {torch.get_num_threads()} thread(s), '
        f'{args.clock} clock, {args.rounds} rounds\n'
    )
    measured = measure(model, cfg, args)
    print(report(measured), flush=True)
    return measured


def spread(measured: Measured) -> str:
    """Overhead in percent, median and range of the rounds."""
    low, high = measured.ratios[0] - 1, measured.ratios[-1] - 1
    return f'{measured.overhead:.1%} (median of rounds; {low:.1%} to {high:.1%})'


def is_above(measured: Measured, limit: Optional[float]) -> bool:
    """Whether the overhead is above a limit in percent."""
    return limit is not None and 100 * measured.overhead > limit


if __name__ == '__main__':
    main()
