"""Show what a network is trained on: labeled images, weak, strong and mixed views, labels.

Writes one contact sheet per batch. Sheet i shows the batch of iteration i of a training run with
the same seed.

Usage::

python tools/analysis_tools/browse_dataset.py CONFIG --out-dir views --number 3
# with the teacher's labels and confidence, and ClassMix made from them:
python tools/analysis_tools/browse_dataset.py CONFIG --checkpoint work_dirs/run/iter_1000.pth
# pseudo-labels of one stage of mutual training:
python tools/analysis_tools/browse_dataset.py CONFIG --stage 1.a --work-dir work_dirs/dmt
"""

import argparse
import copy
import os.path as osp
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmseg.structures import SegDataSample
from PIL import Image
from torch import Tensor, nn

import mmdmt  # noqa: F401  (says what to install when something is missing)
from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.config import resolve_config
from mmdmt.engine.hooks.iter_seed_hook import seed_everything_at
from mmdmt.engine.mutual.stage_config import PSEUDO_LABEL_DIR, StageConfigBuilder
from mmdmt.evaluation.visualization import (
    class_legend,
    confidence_heatmap,
    overlay_label,
    save_image,
    stack_sheets,
    tile_images,
    to_uint8_image,
)
from mmdmt.models.forward import pseudo_label
from mmdmt.models.views import ClassMix, CutMix
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.registry import MODELS

MIXES = {'CutMix': CutMix, 'ClassMix': ClassMix}
STOCK_PREPROCESSORS = ('SegDataPreProcessor', 'mmseg.SegDataPreProcessor')

Columns = Dict[str, List[np.ndarray]]


class Targets(NamedTuple):
    """What is known about the pixels of a batch of images.

    Attributes:
        label: (N, H, W) long.
        confidence: (N, H, W) in [0, 1].
        valid: (N, H, W) bool, False on padding.
    """

    label: Tensor
    confidence: Tensor
    valid: Tensor


# ---------------------------------------------------------------------- command line and config


def parse_args(argv: Optional[Sequence[str]] = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Show what a network is trained on')
    parser.add_argument('config', help='config file')
    parser.add_argument('--out-dir', default='browse', help='folder of the sheets')
    parser.add_argument('--number', type=int, default=4, help='batches to show, a sheet each')
    display = parser.add_mutually_exclusive_group()
    display.add_argument('--show', action='store_true', help='also open the sheets')
    display.add_argument(
        '--not-show', dest='show', action='store_false', help='only write files (the default)'
    )
    parser.add_argument('--cell', type=int, default=320, help='largest side of an image, pixels')
    parser.add_argument('--seed', type=int, help='seed; default randomness.seed of the config')
    parser.add_argument('--checkpoint', help='label the unlabeled images with this checkpoint')
    parser.add_argument(
        '--trust-checkpoint', action='store_true', help='let the checkpoint run code when loaded'
    )
    parser.add_argument(
        '--mix',
        nargs='*',
        choices=sorted(MIXES),
        help='mixed views to show with default settings; by default those of the config',
    )
    parser.add_argument('--stage', help='stage of mutual training, such as 1.a')
    parser.add_argument('--work-dir', help='work dir of mutual training, where the stages are')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='override settings: key=value'
    )
    args = parser.parse_args(argv)
    if args.number < 1:
        parser.error(f'--number must be at least 1, got {args.number}')
    return args


def load_config(args: argparse.Namespace) -> Config:
    """Read the config; of mutual training, take the config of one stage."""
    cfg = Config.fromfile(args.config)
    if args.cfg_options:
        cfg.merge_from_dict(args.cfg_options)
    resolve_config(cfg)
    init_default_scope(cfg.get('default_scope', 'mmseg'))
    if args.seed is not None:
        cfg.setdefault('randomness', {})['seed'] = args.seed
    if 'mutual' in cfg:
        stem = osp.splitext(osp.basename(args.config))[0]
        work_dir = args.work_dir or cfg.get('work_dir') or osp.join('work_dirs', stem)
        return stage_config(cfg, work_dir, args.stage)
    if args.stage:
        raise ValueError(f'--stage {args.stage}: {args.config} has no `mutual`')
    return cfg


def stage_config(cfg: Config, work_dir: str, wanted: Optional[str] = None) -> Config:
    """Config of one stage of mutual training.

    Args:
        cfg: The whole config.
        work_dir: Where the stages are.
        wanted: Name of the stage; by default the latest one that has all its pseudo-labels, else
            the first labeled-only one.

    Returns:
        The stage's config.

    Raises:
        ValueError: If the pseudo-labels of the wanted stage are not there or not complete.
    """
    builder = StageConfigBuilder(cfg)
    stages = [builder.plan.find(wanted)] if wanted else builder.plan.stages
    first_round = [stage for stage in stages if not stage.round]
    for stage in [stage for stage in reversed(stages) if stage.round] + first_round:
        stage_dir = osp.join(work_dir, stage.name)
        store = osp.join(stage_dir, PSEUDO_LABEL_DIR)
        if not stage.round or PseudoLabelStore(store).is_complete:
            print(f'Stage {stage.name}')
            return builder.build(stage, stage_dir)
    raise ValueError(
        f'--stage {wanted}: {store} is no complete store of pseudo-labels; train up to this stage '
        'or name the folder of the run with --work-dir'
    )


# ---------------------------------------------------------------------- what the network sees


def build_preprocessor(cfg: Config) -> nn.Module:
    """Build the config's data preprocessor in a form that can undo its normalization."""
    settings = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    if settings is None:
        raise ValueError('the config has neither model.data_preprocessor nor data_preprocessor')
    settings = copy.deepcopy(settings)
    if settings.get('type') in STOCK_PREPROCESSORS:
        # The same batches without branches, plus `denormalize`.
        settings.update(type='mmdmt.SemiDataPreprocessor', branches=False)
    return MODELS.build(settings)


def find_mixes(cfg: Config, names: Optional[Sequence[str]] = None) -> Dict[str, nn.Module]:
    """Build the mixing views.

    Args:
        cfg: Training config; every CutMix and ClassMix in its ``semi_train_cfg`` counts.
        names: Mixes to build with default settings instead.

    Returns:
        The modules by title.
    """
    if names is not None:
        return {name: MIXES[name]() for name in names}
    mixes: Dict[str, nn.Module] = {}
    for settings in _dicts(cfg.model.get('semi_train_cfg') or {}):
        name = str(settings.get('type')).split('.')[-1]
        if name in MIXES:
            title = name if name not in mixes else f'{name} {len(mixes) + 1}'
            mixes[title] = MODELS.build(copy.deepcopy(settings))
    return mixes


def load_teacher(cfg: Config, checkpoint: str, trusted: bool) -> nn.Module:
    """The network of a checkpoint that makes pseudo-labels: its first teacher, if it has one."""
    model = MODELS.build(copy.deepcopy(cfg.model))
    loaded = load_checkpoint_file(checkpoint, trusted=[checkpoint] if trusted else [])
    model.load_state_dict(loaded.get('state_dict', loaded))
    teachers = getattr(model, 'teacher_names', [])
    return (model.network(teachers[0]) if teachers else model).eval()


def batches(cfg: Config, seed: int) -> Tuple[Any, Iterator[dict]]:
    """The training dataset and its batches, loaded in this process."""
    settings = copy.deepcopy(cfg.train_dataloader)
    settings.update(num_workers=0, persistent_workers=False)
    settings.pop('prefetch_factor', None)
    loader = Runner.build_dataloader(settings, seed=seed)
    return loader.dataset, iter(loader)


def split_batch(data: Dict[str, Any]) -> Tuple[Dict[str, Tensor], Dict[str, list]]:
    """Bring the preprocessor's output into branches: ``sup``, ``unsup`` and ``pseudo``."""
    inputs, samples = data['inputs'], data['data_samples']
    if isinstance(inputs, dict):
        return inputs, samples
    branches: Dict[str, List[int]] = {'sup': [], 'pseudo': []}
    for index, sample in enumerate(samples):
        branches['pseudo' if 'pseudo_confidence' in sample else 'sup'].append(index)
    filled = {name: indices for name, indices in branches.items() if indices}
    return (
        {name: inputs[indices] for name, indices in filled.items()},
        {name: [samples[i] for i in indices] for name, indices in filled.items()},
    )


# ---------------------------------------------------------------------- drawing


class SheetPainter:
    """Draws the contact sheet of a batch.

    Args:
        preprocessor: The data preprocessor, which undoes its normalization.
        metainfo: ``classes`` and ``palette`` of the dataset.
        mixes: Mixing views by title.
        teacher: Network that labels the unlabeled images, or None.
        cell: Largest side of an image on the sheet in pixels.
    """

    def __init__(
        self,
        preprocessor: nn.Module,
        metainfo: Dict[str, Any],
        mixes: Dict[str, nn.Module],
        teacher: Optional[nn.Module] = None,
        cell: int = 320,
    ) -> None:
        self.preprocessor = preprocessor
        self.classes = metainfo.get('classes') or ()
        self.palette = metainfo.get('palette') or []
        self.mixes = mixes
        self.teacher = teacher
        self.cell = cell

    def sheet(self, inputs: Dict[str, Tensor], samples: Dict[str, list]) -> np.ndarray:
        """Draw one batch.

        Args:
            inputs: Branches as :class:`SemiDataPreprocessor` makes them, or of
                :func:`split_batch`.
            samples: Data samples of the branches.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        sections = []
        # In the order of a training step, so that the mixes draw what they draw in training.
        if 'unsup_weak' in inputs:
            sections.append(self._section(samples['unsup'], self._unlabeled(inputs), 'unlabeled'))
        if 'pseudo' in inputs:
            columns = self._pseudo_labeled(inputs['pseudo'], samples['pseudo'])
            sections.append(self._section(samples['pseudo'], columns, 'pseudo-labeled'))
        if 'sup' in inputs:
            columns = self._labeled(inputs['sup'], samples['sup'])
            sections.insert(0, self._section(samples['sup'], columns, 'labeled'))
        width = max(section.shape[1] for section in sections)
        legend = class_legend(self.classes, self.palette, width) if self.classes else None
        return stack_sheets([*sections, *([] if legend is None else [legend])])

    def _section(self, samples: Sequence[SegDataSample], columns: Columns, kind: str) -> np.ndarray:
        names = [osp.basename(sample.metainfo.get('img_path') or '') for sample in samples]
        height, width = next(iter(columns.values()))[0].shape[:2]
        scale = min(1.0, self.cell / max(height, width))
        return tile_images(
            rows=list(zip(*columns.values())),
            column_titles=list(columns),
            row_titles=[f'{kind}: {name}' for name in names],
            cell_size=(max(1, int(height * scale)), max(1, int(width * scale))),
        )

    def _labeled(self, images: Tensor, samples: Sequence[SegDataSample]) -> Columns:
        label = _stack(samples, 'gt_sem_seg')
        columns = {'image': self._images(images), 'label': self._overlays(images, label)}
        if self.teacher is None:
            # Before training there are no predictions: show the mixes on the ground truth.
            known = Targets(label, torch.ones(label.shape), label != 255)
            for title, mix in self.mixes.items():
                columns.update(self._mixed(f'{title} (true labels)', mix, images, known))
        return columns

    def _unlabeled(self, inputs: Dict[str, Tensor]) -> Columns:
        weak, strong = inputs['unsup_weak'], inputs['unsup_strong']
        columns = {'weak': self._images(weak)}
        for key in sorted(key for key in inputs if key.startswith('unsup_strong')):
            columns[key[len('unsup_') :].replace('_', ' ')] = self._images(inputs[key])
        if self.teacher is None:
            for title, mix in self.mixes.items():
                if not isinstance(mix, ClassMix):  # needs labels to mix by
                    columns[title] = self._images(mix(strong).tensors[0])
            return columns
        targets = Targets(*pseudo_label(self.teacher, weak), inputs['unsup_valid'])
        columns['prediction'] = self._overlays(weak, targets.label.masked_fill(~targets.valid, 255))
        columns['confidence'] = _heatmaps(targets)
        for title, mix in self.mixes.items():
            columns.update(self._mixed(title, mix, strong, targets))
        return columns

    def _pseudo_labeled(self, images: Tensor, samples: Sequence[SegDataSample]) -> Columns:
        label = _stack(samples, 'gt_sem_seg')
        confidence = _stack(samples, 'pseudo_confidence')
        valid = torch.ones_like(label, dtype=torch.bool)
        return {
            'image': self._images(images),
            'pseudo-label': self._overlays(images, label),
            'confidence': _heatmaps(Targets(label, confidence, valid)),
        }

    def _mixed(self, title: str, mix: nn.Module, images: Tensor, targets: Targets) -> Columns:
        mixed = mix(images, *targets, label=targets.label, valid=targets.valid)
        image, label, confidence, valid = mixed.tensors
        columns = {
            title: self._images(image),
            f'{title}: label': self._overlays(image, label.masked_fill(~valid, 255)),
        }
        if self.teacher is not None:
            columns[f'{title}: confidence'] = _heatmaps(Targets(label, confidence, valid))
        return columns

    def _images(self, inputs: Tensor) -> List[np.ndarray]:
        return [to_uint8_image(image) for image in self.preprocessor.denormalize(inputs)]

    def _overlays(self, inputs: Tensor, label: Tensor) -> List[np.ndarray]:
        return [
            overlay_label(image, item.numpy(), self.palette)
            for image, item in zip(self._images(inputs), label)
        ]


def _heatmaps(targets: Targets) -> List[np.ndarray]:
    return [
        confidence_heatmap(confidence.numpy(), valid.numpy())
        for confidence, valid in zip(targets.confidence, targets.valid)
    ]


def _stack(samples: Sequence[SegDataSample], field: str) -> Tensor:
    return torch.stack([getattr(sample, field).data.squeeze(0) for sample in samples])


def _dicts(value: Any) -> Iterator[dict]:
    """All dicts in nested dicts, lists and tuples, the outermost first."""
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _dicts(item)


def main(argv: Optional[Sequence[str]] = None) -> List[str]:
    """Write the sheets.

    Args:
        argv: Command line; by default that of the process.

    Returns:
        Paths of the sheets.
    """
    args = parse_args(argv)
    cfg = load_config(args)
    seed = (cfg.get('randomness') or {}).get('seed') or 0
    dataset, loader = batches(cfg, seed)
    teacher = load_teacher(cfg, args.checkpoint, args.trust_checkpoint) if args.checkpoint else None
    painter = SheetPainter(
        build_preprocessor(cfg), dataset.metainfo, find_mixes(cfg, args.mix), teacher, args.cell
    )
    stem = osp.splitext(osp.basename(args.config))[0]
    paths = []
    for index, batch in enumerate(islice(loader, args.number)):
        seed_everything_at(seed, 0, index)
        sheet = painter.sheet(*split_batch(painter.preprocessor(batch, True)))
        paths.append(str(save_image(osp.join(args.out_dir, f'{stem}_{index:03d}.png'), sheet)))
        print(f'[{index + 1}/{args.number}] {paths[-1]}', flush=True)
        if args.show:
            Image.fromarray(sheet).show(title=paths[-1])
    return paths


if __name__ == '__main__':
    main()
