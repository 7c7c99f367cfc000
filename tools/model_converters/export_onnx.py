"""Export what was trained as an ONNX graph, compared with PyTorch.

Usage::

    python tools/model_converters/export_onnx.py WORK_DIR --out DIR
    python tools/model_converters/export_onnx.py CHECKPOINT --out DIR --size 512 512

DIR/model.onnx takes RGB images in 0 to 255 and gives class probabilities, unless --input and
--output say otherwise; DIR/model.json, whose content is in the file's metadata too, says all that
is needed to use it. Several networks that predict together become one graph.
"""

import argparse
import contextlib
import io
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from mmseg.models.segmentors import BaseSegmentor
from mmseg.models.utils import Upsample
from mmseg.structures import SegDataSample
from torch import Tensor, nn

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checks import check_choice
from mmdmt.export.loading import LoadedSegmentor, add_source_options, load_source, threshold_of
from mmdmt.files import atomic_path, write_text_atomically
from mmdmt.models.forward import image_metas

INPUTS = ('rgb', 'uint8', 'normalized')
OUTPUTS = ('probabilities', 'logits', 'labels')
#: Largest difference of a probability that is taken for rounding.
TOLERANCE = 1e-3
_STEPS = (1, 2, 4, 8, 14, 16, 32, 64)  # to which sides of images may have to be multiples
Size = Tuple[int, int]


class OnnxError(RuntimeError):
    """A model that cannot be exported, with the reason."""


class Graph(nn.Module):
    """What is exported: images as a user has them to class probabilities at their size.

    Args:
        networks: Segmentors, each with its preprocessor, whose probabilities are averaged.
        kind: One of ``INPUTS``: RGB in 0 to 255 as float or as uint8, or normalized RGB.
        output: One of ``OUTPUTS``; logits of several networks are log-probabilities.
        dense: From a segmentor and its normalized images to logits (N, C, h, w).
    """

    def __init__(
        self,
        networks: Sequence[Tuple[BaseSegmentor, nn.Module]],
        kind: str,
        output: str,
        dense: Callable[[BaseSegmentor, Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.segmentors = nn.ModuleList(network for network, _ in networks)
        self.kind, self.output, self.dense = kind, output, dense
        self.flips = []
        for index, (_, own) in enumerate(networks):
            mean, std = normalization(own)
            self.register_buffer(f'mean_{index}', torch.tensor(mean).view(1, -1, 1, 1))
            self.register_buffer(f'std_{index}', torch.tensor(std).view(1, -1, 1, 1))
            self.flips.append(_takes_bgr(own))

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) become (N, C, H, W), or labels (N, H, W)."""
        images = images.float()
        found = []
        for index, segmentor in enumerate(self.segmentors):
            own = images.flip(1) if self.flips[index] else images
            if self.kind != 'normalized':
                own = (own - getattr(self, f'mean_{index}')) / getattr(self, f'std_{index}')
            logits = self.dense(segmentor, own)
            found.append(
                F.interpolate(
                    logits, images.shape[2:], mode='bilinear', align_corners=segmentor.align_corners
                )
            )
        return self._combined(found)

    def _combined(self, found: List[Tensor]) -> Tensor:
        if len(found) == 1 and self.output == 'logits':
            return found[0]
        probs = sum(_probabilities(logits) for logits in found) / len(found)
        if self.output == 'labels':
            threshold = threshold_of(self.segmentors[0]) if len(found) == 1 else None
            return probs.argmax(dim=1) if threshold is None else (probs[:, 1] > threshold).long()
        return probs if self.output == 'probabilities' else probs.clamp(min=1e-12).log()


class Exported(NamedTuple):
    """What :func:`export_onnx` wrote: both files, and the content of the second."""

    model: Path
    facts: Path
    content: Dict[str, Any]


def export_onnx(
    loaded: LoadedSegmentor,
    out_dir: Path,
    kind: str = 'rgb',
    output: str = 'probabilities',
    size: Optional[Size] = None,
    opset: int = 17,
) -> Exported:
    """Write ``model.onnx`` and ``model.json``, after comparing the graph with PyTorch.

    Sizes of batch and images are left open where the graph then still gives what PyTorch gives, at
    other sizes too; else they are fixed. Several networks that predict together become one graph,
    the mean of their probabilities.

    Args:
        loaded: The segmentor.
        out_dir: Folder to write to.
        kind: What goes in, one of ``INPUTS``.
        output: What comes out, one of ``OUTPUTS``.
        size: Height and width to export with; by default the window or crop of the config.
        opset: Of ONNX.

    Raises:
        OnnxError: No way to export it gave what PyTorch gives; the message has the reasons.
        ImportError: onnx or onnxruntime is not installed.
    """
    check_choice('--input', kind, INPUTS)
    check_choice('--output', output, OUTPUTS)
    _require_onnx()
    networks = networks_of(loaded.model)
    if len({len(normalization(own)[0]) for _, own in networks}) > 1:
        raise OnnxError('the networks take images of different channels')
    size = size or _size_of(loaded)
    graph = Graph(networks, kind, output, _plain_logits).eval()
    channels = graph.mean_0.numel()
    reasons, path = [], Path(out_dir) / 'model.onnx'
    for dynamo, free, dense in (
        (False, 'batch and size', _plain_logits),
        (False, 'size', _plain_logits),
        (False, 'nothing', _plain_logits),
        (False, 'nothing', _segmentor_logits),
        (True, 'nothing', _plain_logits),
    ):
        graph.dense = dense
        how = f'{"torch.export" if dynamo else "TorchScript"}, {free} open'
        try:
            with atomic_path(path) as temporary:
                example = _images((1, channels, *size), kind, networks)
                _write(graph, example, temporary, opset, dynamo, free)
                step, worst = _compare(graph, networks, temporary, size, free)
                facts = _facts(loaded, graph, size, step or None, worst, free)
                _note(temporary, facts)
            break
        except Exception as error:
            reasons.append(f'{how}: {_first_line(error)}')
    else:
        raise OnnxError(
            f'{loaded.checkpoint} cannot be exported to ONNX at {size[0]}x{size[1]}:\n  '
            + '\n  '.join(dict.fromkeys(reasons))
        )
    text = path.with_suffix('.json')
    write_text_atomically(text, json.dumps(facts, indent=1))
    return Exported(path, text, facts)


def networks_of(model: BaseSegmentor) -> List[Tuple[BaseSegmentor, nn.Module]]:
    """The segmentors that predict, each with the preprocessor of its images."""
    if hasattr(model, 'members'):
        return [(member, member.data_preprocessor) for member in model.members]
    if hasattr(model, 'predictors'):
        return [(network, model.data_preprocessor) for network in model.predictors()]
    return [(model, model.data_preprocessor)]


def normalization(preprocessor: nn.Module) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation by which images are normalized, in the network's channels."""
    if not getattr(preprocessor, '_enable_normalize', False):
        return [0.0] * 3, [1.0] * 3
    return preprocessor.mean.flatten().tolist(), preprocessor.std.flatten().tolist()


# --- Writing -------------------------------------------------------------------------------------


def _plain_logits(segmentor: BaseSegmentor, images: Tensor) -> Tensor:
    """Logits as the head gives them: no size is written into the graph."""
    return segmentor._forward(images)


def _segmentor_logits(segmentor: BaseSegmentor, images: Tensor) -> Tensor:
    """Logits by the segmentor's own way, for cascades and heads that predict in their own way."""
    return segmentor.encode_decode(images, image_metas(images))


def _write(graph: Graph, example: Tensor, path: Path, opset: int, dynamo: bool, free: str) -> None:
    names = dict(input_names=['image'], output_names=[graph.output])
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    out_axes = {0: 'batch', 1: 'height', 2: 'width'} if graph.output == 'labels' else dict(axes)
    # `dynamo` is new in torch 2.1; its TorchScript exporter is the only one before.
    options: Dict[str, Any] = dict(dynamo=True, external_data=False) if dynamo else {}
    if not dynamo and torch.__version__ >= '2.5':
        options = dict(dynamo=False)
    if free != 'nothing':
        if free == 'size':
            del axes[0], out_axes[0]
        options['dynamic_axes'] = {'image': axes, graph.output: out_axes}
    with _quietly(), _traceable(graph), torch.no_grad():
        torch.onnx.export(graph, (example,), str(path), opset_version=opset, **names, **options)


@contextlib.contextmanager
def _traceable(graph: nn.Module) -> Iterator[None]:
    """Let mmseg's upsampling leave the size open, which it would write into the graph."""
    changed = [module for module in graph.modules() if isinstance(module, Upsample)]
    changed = [module for module in changed if not module.size]
    for module in changed:
        how = dict(scale_factor=module.scale_factor, mode=module.mode)
        module.forward = partial(F.interpolate, **how, align_corners=module.align_corners)
    try:
        yield
    finally:
        for module in changed:
            del module.forward


def _note(path: Path, facts: Dict[str, Any]) -> None:
    """Write the facts into the file itself, and check it."""
    import onnx

    model = onnx.load(str(path))
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in facts.items()}
    onnx.helper.set_model_props(model, texts)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _facts(
    loaded: LoadedSegmentor,
    graph: Graph,
    size: Size,
    step: Optional[int],
    worst: float,
    free: str,
) -> Dict[str, Any]:
    """All that has to be known to use the graph."""
    segmentor, own = networks_of(loaded.model)[0]
    mean, std = normalization(own)
    if graph.flips[0]:
        mean, std = mean[::-1], std[::-1]
    ranges = dict(rgb='0 to 255', uint8='0 to 255', normalized='(pixel - mean) / std')
    batch = 'batch' if 'batch' in free else 1
    place = [batch, len(mean), *(('height', 'width') if step else size)]
    test_cfg = dict(segmentor.test_cfg or {})
    resize = [
        s for s in loaded.pipeline if 'Resize' in str(s['type']) or 'AtSize' in str(s['type'])
    ]
    side: Dict[str, Any] = dict(open=step is not None, exported=list(size))
    if step:
        side['multiple_of'] = step
    if test_cfg.get('mode') == 'slide':
        side['windows'] = dict(size=test_cfg['crop_size'], stride=test_cfg['stride'])
    return dict(
        classes=loaded.classes,
        palette=loaded.palette,
        input=dict(
            name='image',
            shape=place,
            channels='RGB' if len(mean) == 3 else f'{len(mean)} bands as loaded',
            dtype='uint8' if graph.kind == 'uint8' else 'float32',
            range=ranges[graph.kind],
            mean=mean,
            std=std,
            normalized_in_graph=graph.kind != 'normalized',
        ),
        size=side,
        resize_before=json.loads(json.dumps(resize, default=str)),
        output=dict(name=graph.output, size='that of the input'),
        networks=loaded.networks,
        temperature=loaded.temperature,
        combined_by='mean of the probabilities' if len(graph.segmentors) > 1 else '',
        checkpoint=loaded.checkpoint.name,
        largest_difference_to_pytorch=worst,
    )


# --- Comparing -----------------------------------------------------------------------------------


def _compare(
    graph: Graph, networks: Sequence[tuple], path: Path, size: Size, free: str
) -> Tuple[int, float]:
    """Step of the sizes that the network takes, and the largest difference to PyTorch.

    Raises:
        OnnxError: The graph gives something else.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    step = _step(networks, size) if free != 'nothing' else 0
    count = 2 if 'batch' in free else 1
    shapes = [(1, *size)] + ([(count, size[0] + step, size[1] + 2 * step)] if step else [])
    worst = 0.0
    for count, *sides in shapes:
        images = _images((count, graph.mean_0.numel(), *sides), graph.kind, networks)
        found = torch.from_numpy(session.run(None, {'image': images.numpy()})[0])
        expected = _reference(networks, images, graph.kind)
        if graph.output == 'labels':
            off = _wrongly_chosen(expected, found, networks)
        else:
            probs = found if graph.output == 'probabilities' else _probabilities(found)
            off = float((probs - expected).abs().max())
        if not off <= TOLERANCE:
            raise OnnxError(f'probabilities at {sides} differ by {off:.2g} from those of PyTorch')
        worst = max(worst, off)
    return step, worst


def _wrongly_chosen(probs: Tensor, labels: Tensor, networks: Sequence[tuple]) -> float:
    """By how much a label is worse than the right one, in probability."""
    threshold = threshold_of(networks[0][0]) if len(networks) == 1 else None
    if threshold is not None:
        wrong = (probs[:, 1] > threshold) != (labels == 1)
        return float(((probs[:, 1] - threshold).abs() * wrong).max())
    chosen = probs.gather(1, labels[:, None]).squeeze(1)
    return float((probs.max(dim=1).values - chosen).max())


def _step(networks: Sequence[tuple], size: Size) -> int:
    """What sides have to be multiples of: the first step that no network refuses."""
    for step in _STEPS:
        if all(side % step == 0 for side in size):
            images = _images((1, len(normalization(networks[0][1])[0]), *size), 'rgb', networks)
            images = F.pad(images, (0, step, 0, step))
            with contextlib.suppress(Exception):
                # A preprocessor that pads would give more than the image has.
                if _reference(networks, images, 'rgb').shape[2:] == images.shape[2:]:
                    return step
    raise OnnxError(f'no size beside {size} is taken')


def _reference(networks: Sequence[tuple], images: Tensor, kind: str) -> Tensor:
    """Probabilities (N, C, H, W) by PyTorch: preprocessors and segmentors as they are."""
    total = None
    for segmentor, own in networks:
        raw = images.float()
        if kind == 'normalized':
            normal = raw.flip(1) if _takes_bgr(own) else raw
        else:
            samples = [SegDataSample() for _ in raw]
            raw = raw.flip(1) if raw.shape[1] == 3 else raw  # as mmcv loads images
            normal = own(dict(inputs=list(raw), data_samples=samples), False)['inputs']
        with torch.no_grad():
            logits = segmentor.encode_decode(normal, image_metas(normal))
        probs = _probabilities(logits)
        total = probs if total is None else total + probs
    return total / len(networks)


def _images(shape: Sequence[int], kind: str, networks: Sequence[tuple]) -> Tensor:
    """Smooth random images, the same ones each time."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand((*shape[:2], 7, 9), generator=generator) * 255
    images = F.interpolate(coarse, tuple(shape[2:]), mode='bilinear').round()
    if kind == 'uint8':
        return images.byte()
    if kind == 'normalized':
        mean, std = normalization(networks[0][1])
        images = (images - np.mean(mean)) / float(np.mean(std))
    return images


# --- Small parts ---------------------------------------------------------------------------------


def _takes_bgr(preprocessor: nn.Module) -> bool:
    """Whether a network sees blue first: mmcv loads BGR, which a preprocessor may convert."""
    converts = getattr(preprocessor, '_channel_conversion', False)
    return not converts and len(normalization(preprocessor)[0]) == 3


def _probabilities(logits: Tensor) -> Tensor:
    if logits.shape[1] > 1:
        return logits.float().softmax(dim=1)
    second = logits.float().sigmoid()
    return torch.cat([1 - second, second], dim=1)


def _size_of(loaded: LoadedSegmentor) -> Size:
    """Height and width to export with: canvas, window or crop of the config."""
    segmentor, own = networks_of(loaded.model)[0]
    canvas = (getattr(own, 'test_cfg', None) or {}).get('size')
    window = (segmentor.test_cfg or {}).get('crop_size')
    found = canvas or window or getattr(own, 'size', None) or (512, 512)
    return tuple(int(side) for side in found)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without what exporters print about tracing and opsets."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(level)


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ImportError(f'{error}: run `pip install onnx onnxruntime onnxscript`') from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f'{type(error).__name__}: {lines[0] if lines else ""}'[:300]


# --- The tool ------------------------------------------------------------------------------------


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Export a network as ONNX')
    add_source_options(parser)
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write to')
    parser.add_argument(
        '--input',
        choices=INPUTS,
        default='rgb',
        help='RGB in 0 to 255, float (default) or uint8, which the graph normalizes; or normalized',
    )
    parser.add_argument('--output', choices=OUTPUTS, default='probabilities', help='what it gives')
    parser.add_argument(
        '--size',
        nargs=2,
        type=int,
        metavar=('HEIGHT', 'WIDTH'),
        help='size to export with, which counts where sizes cannot be left open (default: window '
        'or crop of the config)',
    )
    parser.add_argument('--opset', type=int, default=17, help='version of the operators')
    return parser.parse_args()


def main() -> None:
    """Export."""
    args = parse_args()
    try:
        loaded = load_source(args)
        size = tuple(args.size) if args.size else None
        done = export_onnx(loaded, Path(args.out), args.input, args.output, size, args.opset)
    except (OSError, ValueError, OnnxError) as error:
        sys.exit(f'{type(error).__name__}: {error}')
    sizes, facts = done.content['size'], done.content
    open_sizes = (
        f'any size in steps of {sizes["multiple_of"]}' if sizes['open'] else 'this size only'
    )
    print(f'{done.model}, {done.facts}')
    print(f'exported at {sizes["exported"]}, takes {open_sizes}')
    print(f'largest difference to PyTorch: {facts["largest_difference_to_pytorch"]:.1e}')


if __name__ == '__main__':
    main()
