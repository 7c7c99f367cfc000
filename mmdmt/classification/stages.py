"""Configs of the stages of mutual training for image classification."""

import copy
import os.path as osp
from typing import Dict, List, Optional, Sequence

import numpy as np
from mmengine.config import Config

from mmdmt.checks import refuse_unknown_keys
from mmdmt.classification.soft_labels import SELECTIONS, select_by_confidence
from mmdmt.datasets.splits.files import read_list
from mmdmt.engine.mutual import BUILDERS
from mmdmt.engine.mutual.plan import Stage
from mmdmt.engine.mutual.stage_config import StageConfigBuilder, _flatten, test_pipeline

SOFT_LABELS = 'soft_labels.npz'
#: What ``mmdmt.MutualClassifier`` has beside the arguments of an ``ImageClassifier``.
PSEUDO_LOSS_KEYS = frozenset({'gamma1', 'gamma2', 'ramp', 'mixup_alpha', 'update_bn_twice'})
NOT_NEGATIVE = ('gamma1', 'gamma2', 'mixup_alpha')


class ClassificationStageConfigBuilder(StageConfigBuilder):
    """Builds stage configs for ``mutual.task='classification'``.

    What differs from segmentation:

    - The model is a ``mmdmt.MutualClassifier``; ``mutual.pseudo_loss`` holds what is different in
      the rounds: ``gamma1``, ``gamma2``, ...
    - A round starts from random weights (``round.from_scratch``, True by default, as published).
    - The surest ``ratio`` of the images is used, over all classes together; soft labels lie in
      ``soft_labels.npz`` of the stage.
    - ``PackInputs`` of the unlabeled images hands the soft labels on, whether or not its
      ``algorithm_keys`` say so.

    Args:
        cfg (Config): The whole config, whose ``train_dataloader.dataset`` is a
            ``mmdmt.SemiDataset`` of two ``mmdmt.ListedDataset``, the second with
            ``labeled=False``, plus ``mutual``.

    Raises:
        ValueError: On unknown or missing keys, sources that are not as above, or a ratio that
            selects no image, naming what is wrong: nothing is left to fail after round 0.
    """

    model_types = ('mmdmt.MutualClassifier', 'MutualClassifier')
    labeling_keys = frozenset({'batch_size', 'num_workers', 'selection', 'pipeline'})
    default_metric = 'accuracy/top1'
    default_loss = dict(gamma1=4.0, gamma2=4.0)

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if self.mutual.get('ensemble'):
            raise ValueError('`mutual.ensemble` is for segmentation: take it out of the config')
        _check_pseudo_loss(self.mutual.get('pseudo_loss', {}))
        labeled, unlabeled = cfg.train_dataloader.dataset.datasets
        _check_sources(labeled, unlabeled)
        _check_selection(self.plan.ratios, self.mutual.get('labeling', {}), unlabeled)
        self.mutual.setdefault('round', {}).setdefault('from_scratch', True)

    def comparable(self, cfg: Config) -> Dict[str, str]:
        """Flat view of the values that decide the outcome of a stage, with the averaging."""
        flat = super().comparable(cfg)
        for hook in cfg.get('custom_hooks', []):
            if hook.type == 'EMAHook':
                _flatten('ema', hook, flat)
        return flat

    def _set_data(self, cfg: Config, stage: Stage, settings: dict, stage_dir: str) -> None:
        """One labeled source in round 0, labeled and soft-labeled later."""
        loader = cfg.train_dataloader
        labeled, unlabeled = loader.dataset.datasets
        member = self.plan.member(stage.member)
        if stage.round == 0 and member.get('labeled_list'):
            labeled.ann_file = member['labeled_list']
        if stage.round:
            unlabeled.soft_labels = f'{stage_dir}/{SOFT_LABELS}'
            unlabeled.pipeline = _with_soft_labels(unlabeled.pipeline)
        loader.dataset.datasets = [labeled, unlabeled] if stage.round else [labeled]
        ratio = settings.get('source_ratio', loader.sampler.get('source_ratio'))
        loader.batch_size = settings.get('batch_size', loader.batch_size)
        loader.sampler.batch_size = loader.batch_size
        loader.sampler.source_ratio = ratio if stage.round else [1]

    def _set_pseudo_labels(
        self, cfg: Config, stage: Stage, stage_dir: str, teacher_checkpoint: Optional[str]
    ) -> None:
        """The weights of the rounds, and the hook that labels before training."""
        cfg.model.update(self.mutual.get('pseudo_loss', self.default_loss))
        labeling = dict(self.mutual.get('labeling', {}))
        pipeline = labeling.pop('pipeline', None) or test_pipeline(self.cfg)
        dataset = copy.deepcopy(self.cfg.train_dataloader.dataset.datasets[1])
        dataset['pipeline'] = copy.deepcopy(pipeline)
        hook = dict(
            type='mmdmt.SoftLabelHook',
            path=f'{stage_dir}/{SOFT_LABELS}',
            model=self.member_model(stage.teacher),
            checkpoint=teacher_checkpoint,
            dataset=dataset,
            ratio=stage.ratio,
            **labeling,
        )
        cfg.custom_hooks = [*cfg.get('custom_hooks', []), hook]
        cfg.labeling = dict(
            teacher=stage.labeled_by, ratio=stage.ratio, dataset=dataset, **labeling
        )


BUILDERS['classification'] = ClassificationStageConfigBuilder


def _check_pseudo_loss(pseudo_loss: dict) -> None:
    refuse_unknown_keys('mutual.pseudo_loss', pseudo_loss, PSEUDO_LOSS_KEYS)
    for key in NOT_NEGATIVE:
        if pseudo_loss.get(key, 0) < 0:
            raise ValueError(
                f'`mutual.pseudo_loss.{key}` must not be negative, got {pseudo_loss[key]}'
            )


def _check_sources(labeled: dict, unlabeled: dict) -> None:
    """Refuse sources that would be trained on with labels that nobody gave or that are hidden."""
    for index, (source, wanted) in enumerate([(labeled, True), (unlabeled, False)]):
        name = f'train_dataloader.dataset.datasets[{index}]'
        if str(source.get('type')).split('.')[-1] != 'ListedDataset':
            raise ValueError(
                f'`{name}.type` must be mmdmt.ListedDataset, got {source.get("type")!r}'
            )
        if source.get('labeled', True) is not wanted:
            raise ValueError(
                f'`{name}`, the {"labeled" if wanted else "unlabeled"} images, needs '
                f'`labeled={wanted}`, got {source.get("labeled", True)}'
            )


def _check_selection(ratios: Sequence[float], labeling: dict, unlabeled: dict) -> None:
    """Refuse an unknown rule, and a ratio of so few images that none would be selected."""
    rule = labeling.get('selection', 'strict')
    if rule not in SELECTIONS:
        raise ValueError(f'`mutual.labeling.selection` must be one of {SELECTIONS}, got {rule!r}')
    path = unlabeled.get('ann_file')
    path = osp.join(unlabeled.get('data_root') or '', path) if path else ''
    if not osp.isfile(path):  # all images of a folder, or a list that the data check will miss
        return
    count = len(read_list(path))
    for ratio in ratios if count else ():
        try:
            select_by_confidence(np.linspace(0, 1, count), ratio, rule)
        except ValueError as error:
            raise ValueError(f'`mutual.ratios`={list(ratios)} for {path}: {error}') from error


def _with_soft_labels(pipeline: Sequence[dict]) -> List[dict]:
    """A pipeline whose packing step hands the soft label on.

    Without it the classifier would take the most probable class for ground truth.

    Raises:
        ValueError: If the pipeline does not end with ``PackInputs``.
    """
    pipeline = copy.deepcopy(list(pipeline))
    pack = pipeline[-1] if pipeline else {}
    if str(pack.get('type')).split('.')[-1] != 'PackInputs':
        raise ValueError(
            'the pipeline of the unlabeled images, `train_dataloader.dataset.datasets[1].pipeline`,'
            f" must end with dict(type='PackInputs'), which packs their soft labels; it ends with "
            f'{pack.get("type")}'
        )
    keys = pack.get('algorithm_keys', ())
    if 'soft_label' not in keys:
        pack['algorithm_keys'] = (*keys, 'soft_label')
    return pipeline
