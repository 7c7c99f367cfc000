"""GPU memory of a training step, on a machine without a GPU, data or weights.

A step of the config runs on tensors that have shapes and no values: forward passes, losses,
backward pass and optimizer. What is allocated and freed meanwhile is counted::

    python tools/analysis_tools/estimate_memory.py CONFIG
    python tools/analysis_tools/estimate_memory.py CONFIG --gpu-memory 24     # largest batch
    python tools/analysis_tools/estimate_memory.py configs/dmt/*.py --table   # a line for each

Not counted, and left to ``--reserve``: CUDA context, libraries, their workspaces, and memory that
torch's allocator holds but cannot use. Mixed precision casts what CUDA's autocast casts. Of mutual
training it is a stage, by default the first one with pseudo-labels.
"""

import argparse
import copy
import logging
import weakref
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple
from unittest import mock

import torch
import torch.nn.functional as F
from mmengine.config import Config, DictAction
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmengine.structures import PixelData
from mmseg.models.segmentors import BaseSegmentor
from mmseg.structures import SegDataSample
from prettytable import PrettyTable, TableStyle
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import ConcatDataset

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.config import merge_options, resolve_config
from mmdmt.datasets.samplers.multi_source_sampler import MultiSourceSampler
from mmdmt.engine.mutual.stage_config import StageConfigBuilder
from mmdmt.export.plain import forget_pretrained
from mmdmt.models.losses.contrast import functional as contrast
from mmdmt.models.methods import SemiSegmentor
from mmdmt.models.methods.networks import build_segmentor
from mmdmt.models.supervised import train_without_waiting

GIB = 2**30
# What CUDA's autocast runs in 16 bits, and in 32; other operations take what they get.
HALF = (
    [(F, name) for name in ('linear', 'conv1d', 'conv2d', 'conv_transpose2d')]
    + [(torch, name) for name in ('matmul', 'bmm', 'baddbmm', 'mm', 'addmm', 'einsum')]
    + [(torch.Tensor, name) for name in ('matmul', '__matmul__', 'bmm', 'mm')]
    + [(F, 'scaled_dot_product_attention')]
)
FULL = (
    [(F, name) for name in ('softmax', 'log_softmax', 'cross_entropy', 'layer_norm', 'group_norm')]
    + [(F, name) for name in ('nll_loss', 'normalize', 'cosine_similarity')]
    + [(torch, name) for name in ('softmax', 'log_softmax', 'layer_norm')]
    + [(torch.Tensor, name) for name in ('softmax', 'log_softmax', 'exp', 'log')]
)

VARIANTS = ('fp32', 'fp32, with_cp', 'AMP', 'AMP, with_cp')


class Usage(NamedTuple):
    """Bytes of a training step."""

    weights: int
    """Of the networks that are trained."""
    gradients: int
    optimizer: int
    """State of the optimizer."""
    teachers: int
    """Networks that are not trained, and all buffers: running statistics, memory banks."""
    kept: int
    """Activations that autograd keeps for the backward pass."""
    peak: int
    """All of it at the time at which most is in use."""
    where: str
    """When that is: 'forward', 'backward' or 'optimizer'."""


# ------------------------------------------------------------------------------------- the config


def training_config(
    path: str, stage: Optional[str] = None, options: Optional[dict] = None
) -> Config:
    """The config of an ordinary run; of mutual training that of a stage."""
    cfg = Config.fromfile(path)
    merge_options(cfg, options or {})
    cfg = resolve_config(cfg)
    if 'mutual' not in cfg:
        return cfg
    builder = StageConfigBuilder(cfg)
    plan = builder.plan
    chosen = plan.find(stage) if stage else plan.stages[len(plan.members)]
    return builder.build(chosen, chosen.name)


def images_per_source(cfg: Config, batch_size: int) -> List[int]:
    """Labeled and unlabeled images in a batch, as the sampler draws them."""
    ratio = (cfg.train_dataloader.get('sampler') or {}).get('source_ratio') or [1]
    sources = ConcatDataset([range(10**6) for _ in ratio])
    counts = MultiSourceSampler(sources, batch_size, ratio, seed=0).items_per_batch
    return [*counts, 0][:2]


def build_model(cfg: Config, size: Optional[Tuple[int, int]] = None) -> BaseSegmentor:
    """The model in training mode, with shapes instead of weights."""
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    parts = copy.deepcopy(cfg.model)
    forget_pretrained(parts)
    linspace = torch.linspace  # of drop rates, which are read as numbers
    on_cpu = mock.patch.object(
        torch, 'linspace', lambda *args, **options: linspace(*args, **{**options, 'device': 'cpu'})
    )
    with torch.device('meta'), on_cpu:
        model = revert_sync_batchnorm(build_segmentor(parts))
    train_without_waiting(model)
    if getattr(model, 'sub_model', None) is not None:
        model.sub_model.drop_probs.zero_()  # the largest sub-model
    if isinstance(model, SemiSegmentor):
        model.start_run(10**6, [1, 1])
    if size:
        model.data_preprocessor.size, model.data_preprocessor.size_divisor = tuple(size), None
    if model.data_preprocessor.size is None:
        raise SystemExit('The config has no `data_preprocessor.size`: give --size H W')
    return model.to('meta').train()


def make_batch(model: BaseSegmentor, counts: List[int], device: str = 'meta') -> Dict[str, list]:
    """Images and data samples as a loader gives them; the second source has stored labels."""
    size = tuple(model.data_preprocessor.size)
    samples = []
    for index in range(sum(counts)):
        sample = SegDataSample(metainfo=dict(img_shape=size, ori_shape=size))
        if index < counts[0] or hasattr(model, 'pseudo_loss'):
            label = torch.zeros((1, *size), dtype=torch.long, device=device)
            sample.gt_sem_seg = PixelData(data=label)
        if index >= counts[0] and hasattr(model, 'pseudo_loss'):
            sample.set_metainfo(dict(is_pseudo=True))
            sample.pseudo_confidence = PixelData(data=torch.ones((1, *size), device=device))
        samples.append(sample)
    images = [torch.zeros((3, *size), dtype=torch.uint8, device=device) for _ in samples]
    return dict(inputs=images, data_samples=samples)


# --------------------------------------------------------------------------------------- counting


def storages(tensors: Any) -> Dict[int, Any]:
    """Storages of tensors without values by their addresses; views share one."""
    found = {}
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor) and tensor.device.type == 'meta':
            storage = tensor.untyped_storage()
            found[storage._cdata] = storage
    return found


def size_of(tensors: Any) -> int:
    """Bytes of tensors, each storage once."""
    return sum(storage.nbytes() for storage in storages(tensors).values())


class LiveBytes(TorchDispatchMode):
    """Counts what is allocated, and freed, inside a ``with`` block."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._live = set(storages(known))

    def __torch_dispatch__(self, func: Callable, types: tuple, args: tuple = (), kwargs=None):
        """Run an operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        for address, storage in storages(result).items():
            if address not in self._live:
                self._live.add(address)
                self.now += storage.nbytes()
                freed = weakref.finalize(storage, self._free, address, storage.nbytes())
                freed.atexit = False
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, address: int, size: int) -> None:
        self._live.discard(address)
        self.now -= size


@contextmanager
def autocast(amp: bool) -> Iterator[None]:
    """Cast as CUDA's autocast does, or not at all; torch's does not know tensors without values."""
    casts = [amp]
    cast: Dict[Tuple[int, bool], Tensor] = {}  # as autocast, weights once in a pass

    @contextmanager
    def inner(*_: Any, enabled: bool = True, **__: Any) -> Iterator[None]:
        casts.append(enabled and amp)
        yield
        casts.pop()

    def to(dtype: torch.dtype, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if not isinstance(value, nn.Parameter) or not value.requires_grad:
            return value.to(dtype)
        key = id(value), torch.is_grad_enabled()
        if key not in cast:
            cast[key] = value.to(dtype)
        return cast[key]

    def casting(function: Callable, dtype: torch.dtype) -> Callable:
        def run(*args: Any, **kwargs: Any) -> Any:
            if casts[-1]:
                args, kwargs = tree_map(lambda value: to(dtype, value), (args, kwargs))
            return function(*args, **kwargs)

        return run

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch, 'autocast', inner))
        # It asks for torch's autocast only on devices that have one.
        full = mock.patch.object(contrast, '_full_precision', lambda _: inner(enabled=False))
        stack.enter_context(full)
        for names, dtype in ((HALF, torch.float16), (FULL, torch.float32)):
            for owner, name in names:
                function = casting(getattr(owner, name), dtype)
                stack.enter_context(mock.patch.object(owner, name, function))
        yield


@contextmanager
def checkpointing(model: nn.Module, enabled: bool = True) -> Iterator[int]:
    """Let backbones recompute what they can; yields the number of blocks that do."""
    able = [module for module in model.modules() if hasattr(module, 'with_cp')]
    before = [module.with_cp for module in able]
    for module in able:
        module.with_cp = module.with_cp or enabled
    try:
        yield len(able)
    finally:
        for module, value in zip(able, before):
            module.with_cp = value


class Estimator:
    """Runs steps of a config on a model without values.

    Args:
        cfg: Config of an ordinary run.
        size: Height and width of the images. Defaults to the crop size.
    """

    def __init__(self, cfg: Config, size: Optional[Tuple[int, int]] = None) -> None:
        self.cfg = cfg
        self.model = build_model(cfg, size)
        self.static = [*self.model.parameters(), *self.model.buffers()]
        self.trained = [one for one in self.model.parameters() if one.requires_grad]
        self.state = self._optimizer_state()

    @property
    def size(self) -> Tuple[int, int]:
        """Height and width of the images."""
        return tuple(self.model.data_preprocessor.size)

    def _optimizer_state(self) -> int:
        """Bytes that the optimizer has after a step."""
        wrapper = dict(copy.deepcopy(self.cfg.optim_wrapper), type='OptimWrapper')
        for key in ('loss_scale', 'dtype', 'accumulative_counts', 'clip_grad'):
            wrapper.pop(key, None)
        optimizer = build_optim_wrapper(self.model, wrapper).optimizer
        for parameter in self.trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        self.model.zero_grad()
        return size_of(list(optimizer.state.values()))

    def measure(self, batch_size: int, amp: bool = False) -> Usage:
        """Count what a step needs."""
        known, kept = storages(self.static), {}

        def keep(tensor: Tensor) -> Tensor:
            kept.update({k: s.nbytes() for k, s in storages(tensor).items() if k not in known})
            return tensor

        with LiveBytes(self.static) as live, autocast(amp):  # recomputation casts, too
            batch = make_batch(self.model, images_per_source(self.cfg, batch_size))
            saving = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
            with saving:
                data = self.model.data_preprocessor(batch, True)
                loss, _ = self.model.parse_losses(self.model(**data, mode='loss'))
            forward, live.peak = live.peak, live.now
            loss.backward()
        gradients = size_of([parameter.grad for parameter in self.trained])
        self.model.zero_grad()
        # torch's optimizers work on a copy of all gradients on a GPU (`foreach`).
        phases = dict(forward=forward, backward=live.peak, optimizer=2 * gradients)
        where = max(phases, key=phases.get)
        static, weights = size_of(self.static), size_of(self.trained)
        peak = static + self.state + phases[where]
        kept_bytes = sum(kept.values())
        return Usage(weights, gradients, self.state, static - weights, kept_bytes, peak, where)

    def largest_batch(self, limit: float, amp: bool = False) -> int:
        """The largest batch of the config's ratio whose peak is at most ``limit`` bytes, or 0.

        Above a hundred units of the ratio it is the largest but for 1 %.
        """
        ratio = (self.cfg.train_dataloader.get('sampler') or {}).get('source_ratio') or [1]
        whole = all(float(share).is_integer() for share in ratio)
        unit = int(sum(ratio)) if whole else self.cfg.train_dataloader.batch_size
        peaks: Dict[int, int] = {}

        def peak(count: int) -> int:
            if count not in peaks:
                peaks[count] = self.measure(count * unit, amp).peak
            return peaks[count]

        slope = max(1, (peak(10) - peak(2)) // 8)
        count, fits, too_many = 10, 0, None
        while too_many is None or too_many - fits > max(1, fits // 100):
            count += int((limit - peak(count)) // slope)  # nearly a line
            if too_many and len(peaks) % 2:  # but not enough, far from where its slope was measured
                count = (fits + too_many) // 2
            largest = too_many - 1 if too_many else 64 * max(fits, 10)
            count = min(max(count, fits + 1), largest)
            if peak(count) <= limit:
                fits = count
            else:
                too_many = count
        return fits * unit

    def variants(self, batch_size: int, names: Sequence[str] = VARIANTS) -> Dict[str, Usage]:
        """Usage with and without mixed precision, and gradient checkpointing where it can be."""
        found = {}
        for name in names:
            with checkpointing(self.model, 'with_cp' in name) as blocks:
                if blocks or 'with_cp' not in name:
                    found[name] = self.measure(batch_size, 'AMP' in name)
        return found


# ----------------------------------------------------------------------------------------- report


def gib(size: float) -> str:
    """Bytes as GiB."""
    return f'{size / GIB:.2f}'


def report(estimator: Estimator, args: argparse.Namespace) -> str:
    """The estimate of a config as text."""
    batch_size = args.batch_size or estimator.cfg.train_dataloader.batch_size
    found = estimator.variants(batch_size)
    table = markdown(['GiB', *found])
    titles = dict(
        weights='weights', gradients='gradients', optimizer='optimizer state',
        teachers='teachers, buffers, banks', kept='kept for backward', peak='peak of a step',
    )  # fmt: skip
    for key, title in titles.items():
        table.add_row([title, *(gib(getattr(usage, key)) for usage in found.values())])
    table.add_row(['which is in the', *(usage.where for usage in found.values())])
    if args.gpu_memory:
        limit, largest = (args.gpu_memory - args.reserve) * GIB, []
        for name in found:
            with checkpointing(estimator.model, 'with_cp' in name):
                largest.append(estimator.largest_batch(limit, 'AMP' in name) or 'none')
        title = f'largest batch in {args.gpu_memory:g} - {args.reserve:g} GiB'
        table.add_row([title, *largest])
    labeled, unlabeled = images_per_source(estimator.cfg, batch_size)
    height, width = estimator.size
    return '\n'.join(
        [
            f'{labeled} labeled and {unlabeled} unlabeled images of {height}x{width}\n',
            table.get_string(),
            f'\nSeveral processes: {gib(found["fp32"].gradients)} GiB more for gradients that are '
            'exchanged. channels_last: the same bytes in another order.',
        ]
    )


def table_of(paths: List[str], args: argparse.Namespace) -> str:
    """A line of Markdown for each config that is not, for the memory, like one before."""
    shown = ('fp32', 'AMP', 'AMP, with_cp')
    table = markdown(['config', 'images', 'kept', *(f'peak {name}' for name in shown)])
    seen = set()
    for path in paths:
        cfg = training_config(path, args.stage, args.cfg_options)
        if _outline(cfg) in seen:
            continue
        seen.add(_outline(cfg))
        estimator = Estimator(cfg, args.size)
        batch_size = args.batch_size or estimator.cfg.train_dataloader.batch_size
        found = estimator.variants(batch_size, shown)
        peaks = [gib(found[name].peak) if name in found else '' for name in shown]
        counts = '+'.join(str(n) for n in images_per_source(estimator.cfg, batch_size) if n)
        name = '/'.join(Path(path).with_suffix('').parts[-2:])
        table.add_row([f'`{name}`', counts, gib(found['fp32'].kept), *peaks])
    return table.get_string()


def _outline(cfg: Config) -> str:
    """What the memory of a step depends on."""
    model = cfg.model.to_dict()
    loss = model.pop('pseudo_loss', {}).get('type')
    loader, optimizer = cfg.train_dataloader, cfg.optim_wrapper.optimizer
    counts = images_per_source(cfg, loader.batch_size)
    return str((model, loss, counts, optimizer.type))


def markdown(titles: List[str]) -> PrettyTable:
    """A table without rows whose first column is text."""
    table = PrettyTable(titles, align='r')
    table.set_style(TableStyle.MARKDOWN)
    table.align[titles[0]] = 'l'
    return table


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Estimate the GPU memory of a training step')
    parser.add_argument('config', nargs='+', help='config of a method or of a baseline')
    parser.add_argument('--gpu-memory', type=float, metavar='GIB', help='find the largest batch')
    parser.add_argument(
        '--reserve', type=float, default=1.5, metavar='GIB', help='of it not for tensors'
    )
    parser.add_argument('--batch-size', type=int, help='default: that of the config')
    parser.add_argument('--size', type=int, nargs=2, metavar=('H', 'W'), help='default: crop size')
    parser.add_argument('--stage', help='of mutual training, such as 0.a; default: 1.a')
    parser.add_argument('--table', action='store_true', help='print a line for each config')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction)
    return parser.parse_args()


def main() -> None:
    """Estimate and print."""
    args = parse_args()
    logging.disable(logging.WARNING)  # on the optimizer's learning rates
    if args.table:
        print(table_of(args.config, args))
        return
    for path in args.config:
        estimator = Estimator(training_config(path, args.stage, args.cfg_options), args.size)
        print(f'{path}: {report(estimator, args)}')


if __name__ == '__main__':
    main()
