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
from typing import Any, Dict, List, Optional, Tuple

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
from mmdmt.config import merge_options, resolve_config
from mmdmt.engine.hooks.iter_seed_hook import seed_everything_at
from mmdmt.engine.mutual.stage_config import StageConfigBuilder
from mmdmt.evaluation.visualization import (
    class_legend,
    confidence_heatmap,
    overlay_label,
    save_image,
    stack_sheets,
    tile_images,
    to_uint8_image,
)
from mmdmt.export.plain import dicts_in
from mmdmt.models.forward import Targets, pseudo_label, stack_pixel_data
from mmdmt.models.views import ClassMix, CutMix, MixView, StrongAugment
from mmdmt.pseudo import PseudoLabelStore
from mmdmt.registry import MODELS

MIXES = {'CutMix': CutMix, 'ClassMix': ClassMix}

Columns = Dict[str, List[np.ndarray]]
Views = Dict[str, nn.Module]


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
        merge_options(cfg, args.cfg_options)
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
        store = osp.join(stage_dir, builder.store)
        if not stage.round or PseudoLabelStore(store).is_complete:
            print(f'Stage {stage.name}')
            return builder.build(stage, stage_dir)
    raise ValueError(
        f'--stage {wanted}: {store} is no complete store of pseudo-labels; train up to this stage '
        'or name the folder of the run with --work-dir'
    )


# ---------------------------------------------------------------------- what the network sees


def build_preprocessor(cfg: Config) -> nn.Module:
    """Preprocessor of online methods with the settings of the config's segmentor."""
    for part in (*dicts_in(cfg.model), cfg):
        if part.get('data_preprocessor'):
            settings = dict(part['data_preprocessor'], type='mmdmt.SemiDataPreprocessor')
            return MODELS.build(settings)
    raise ValueError('the config has neither model.data_preprocessor nor data_preprocessor')


def find_views(model: nn.Module, names: Optional[Sequence[str]] = None) -> Views:
    """Strong augmentations and mixing views of a model by title, augmentations first.

    Args:
        model: Model of the training config.
        names: Mixes with default settings to take instead of those of the model.
    """
    modules = list(model.modules())
    found = [module for module in modules if isinstance(module, StrongAugment)]
    if names is None:
        found += [module for module in modules if isinstance(module, MixView)]
    else:
        found += [MIXES[name]() for name in names]
    views: Views = {}
    for module in found:
        kind = 'strong' if isinstance(module, StrongAugment) else type(module).__name__
        count = sum(title.split(' ')[0] == kind for title in views)
        views[f'{kind} {count + 1}' if count else kind] = module
    return views


def load_labeler(model: nn.Module, checkpoint: str, trusted: bool) -> nn.Module:
    """Load a checkpoint; return the network that makes pseudo-labels: the first teacher, if any."""
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


# ---------------------------------------------------------------------- drawing


class SheetPainter:
    """Draws the contact sheet of a batch.

    Args:
        preprocessor: A ``SemiDataPreprocessor``.
        metainfo: ``classes`` and ``palette`` of the dataset.
        views: Strong augmentations and mixing views by title.
        labeler: Network that labels the unlabeled images, or None.
        cell: Largest side of an image on the sheet in pixels.
    """

    def __init__(
        self,
        preprocessor: nn.Module,
        metainfo: Dict[str, Any],
        views: Views,
        labeler: Optional[nn.Module] = None,
        cell: int = 320,
    ) -> None:
        self.preprocessor = preprocessor
        self.classes = metainfo.get('classes') or ()
        self.palette = metainfo.get('palette') or []
        self.strong = {k: v for k, v in views.items() if isinstance(v, StrongAugment)}
        self.mixes = {k: v for k, v in views.items() if k not in self.strong}
        self.labeler = labeler
        self.cell = cell

    def sheet(self, batch: Dict[str, list]) -> np.ndarray:
        """Draw one batch, as the loader gives it: (H, W, 3) uint8 RGB."""
        data = self.preprocessor(batch, True)
        inputs, samples = data['inputs'], data['data_samples']
        sections = []
        # In the order of a training step, so that the views draw what they draw in training.
        if 'unsup' in samples:
            sections.append(self._section(samples['unsup'], self._unlabeled(inputs), 'unlabeled'))
        if 'sup' in samples:
            rgb = self.preprocessor.denormalize(inputs['sup'])
            sections = [*self._with_labels(rgb, samples['sup']), *sections]
        width = max(section.shape[1] for section in sections)
        legend = class_legend(self.classes, self.palette, width) if self.classes else None
        return stack_sheets([*sections, *([] if legend is None else [legend])])

    def _with_labels(self, rgb: Tensor, samples: Sequence[SegDataSample]) -> Iterator[np.ndarray]:
        """Sections of labeled and of pseudo-labeled images."""
        for pseudo, kind in ((False, 'labeled'), (True, 'pseudo-labeled')):
            chosen = [i for i, s in enumerate(samples) if ('pseudo_confidence' in s) == pseudo]
            if chosen:
                images, some = rgb[chosen], [samples[index] for index in chosen]
                columns = self._pseudo_labeled if pseudo else self._labeled
                yield self._section(some, columns(images, some), kind)

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

    def _labeled(self, rgb: Tensor, samples: Sequence[SegDataSample]) -> Columns:
        label = stack_pixel_data(samples, 'gt_sem_seg')
        columns = {'image': _images(rgb), 'label': self._overlays(rgb, label)}
        if self.labeler is None:
            # Before training there are no predictions: show the mixes on the ground truth.
            known = Targets(label, torch.ones(label.shape), label != 255)
            for title, mix in self.mixes.items():
                columns.update(self._mixed(f'{title} (true labels)', mix, rgb, known))
        return columns

    def _pseudo_labeled(self, rgb: Tensor, samples: Sequence[SegDataSample]) -> Columns:
        label = stack_pixel_data(samples, 'gt_sem_seg')
        confidence = torch.zeros(label.shape)
        for padded, sample in zip(confidence, samples):
            stored = sample.pseudo_confidence.data[0]
            padded[: stored.shape[0], : stored.shape[1]] = stored
        return {
            'image': _images(rgb),
            'pseudo-label': self._overlays(rgb, label),
            'confidence': _heatmaps(Targets(label, confidence, confidence >= 0)),
        }

    def _unlabeled(self, inputs: Dict[str, Tensor]) -> Columns:
        rgb, valid = inputs['unsup_rgb'], inputs['unsup_valid']
        columns, view = {'weak': _images(rgb)}, rgb
        for number, (title, strong) in enumerate(self.strong.items()):
            augmented = strong(rgb, valid)
            columns[title] = _images(augmented)
            view = view if number else augmented
        if self.labeler is None:
            unknown = Targets(valid.long(), valid.float(), valid)
            boxes = {k: mix for k, mix in self.mixes.items() if not isinstance(mix, ClassMix)}
            return {**columns, **{k: _images(mix(view, unknown)[0]) for k, mix in boxes.items()}}
        targets = pseudo_label(self.labeler, inputs['unsup_weak'], valid)
        columns['prediction'] = self._overlays(rgb, targets.label.masked_fill(~valid, 255))
        columns['confidence'] = _heatmaps(targets)
        for title, mix in self.mixes.items():
            columns.update(self._mixed(title, mix, view, targets))
        return columns

    def _mixed(self, title: str, mix: nn.Module, rgb: Tensor, targets: Targets) -> Columns:
        rgb, targets = mix(rgb, targets)
        label = targets.label.masked_fill(~targets.valid, 255)
        columns = {title: _images(rgb), f'{title}: label': self._overlays(rgb, label)}
        if self.labeler is not None:
            columns[f'{title}: confidence'] = _heatmaps(targets)
        return columns

    def _overlays(self, rgb: Tensor, label: Tensor) -> List[np.ndarray]:
        pairs = zip(_images(rgb), label)
        return [overlay_label(image, item.numpy(), self.palette) for image, item in pairs]


def _images(rgb: Tensor) -> List[np.ndarray]:
    return [to_uint8_image(image) for image in rgb]


def _heatmaps(targets: Targets) -> List[np.ndarray]:
    return [
        confidence_heatmap(confidence.numpy(), valid.numpy())
        for confidence, valid in zip(targets.confidence, targets.valid)
    ]


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
    preprocessor = build_preprocessor(cfg)
    model = MODELS.build(copy.deepcopy(cfg.model))
    labeler = None
    if args.checkpoint:
        labeler = load_labeler(model, args.checkpoint, args.trust_checkpoint)
    views = find_views(model, args.mix)
    painter = SheetPainter(preprocessor, dataset.metainfo, views, labeler, args.cell)
    stem = osp.splitext(osp.basename(args.config))[0]
    paths = []
    for index, batch in enumerate(islice(loader, args.number)):
        seed_everything_at(seed, 0, index)
        sheet = painter.sheet(batch)
        paths.append(str(save_image(osp.join(args.out_dir, f'{stem}_{index:03d}.png'), sheet)))
        print(f'[{index + 1}/{args.number}] {paths[-1]}', flush=True)
        if args.show:
            Image.fromarray(sheet).show(title=paths[-1])
    return paths


if __name__ == '__main__':
    main()
