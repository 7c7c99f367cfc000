"""Configs of the stages of mutual training for image classification."""

import copy
from typing import Dict, Optional

from mmengine.config import Config

from .plan import Stage
from .stage_config import StageConfigBuilder, _flatten

SOFT_LABELS = 'soft_labels.npz'


class ClassificationStageConfigBuilder(StageConfigBuilder):
    """Builds stage configs for ``mutual.task='classification'``.

    What differs from segmentation:

    - The model is a ``mmdmt.MutualClassifier``; ``mutual.pseudo_loss`` holds what is different in
      the rounds: ``gamma1``, ``gamma2``, ...
    - A round starts from random weights (``round.from_scratch``, True by default, as published).
    - ``max_iters`` may be a list with one number for each round, since the pseudo-labeled set
      grows.
    - The surest ``ratio`` of the images is used, over all classes together; soft labels lie in
      ``soft_labels.npz`` of the stage.

    Args:
        cfg (Config): The whole config, whose ``train_dataloader.dataset`` is a
            ``mmdmt.SemiDataset`` of two ``mmdmt.ListedDataset``, plus ``mutual``.

    Raises:
        ValueError: On unknown or missing keys, naming them.
    """

    model_types = ('mmdmt.MutualClassifier', 'MutualClassifier')
    labeling_keys = frozenset({'batch_size', 'num_workers', 'selection', 'pipeline'})
    default_metric = 'accuracy/top1'
    default_loss = dict(gamma1=4.0, gamma2=4.0)

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if self.mutual.get('ensemble'):
            raise ValueError('`mutual.ensemble` is for segmentation: take it out of the config')
        self.mutual.setdefault('round', {}).setdefault('from_scratch', True)
        lengths = self.mutual['round'].get('max_iters')
        if isinstance(lengths, (list, tuple)) and len(lengths) != len(self.plan.ratios):
            raise ValueError(
                f'`mutual.round.max_iters` has {len(lengths)} numbers for '
                f'{len(self.plan.ratios)} ratios: give one number, or one a round'
            )

    def comparable(self, cfg: Config) -> Dict[str, str]:
        """Flat view of the values that decide the outcome of a stage, with the averaging."""
        flat = super().comparable(cfg)
        for hook in cfg.get('custom_hooks', []):
            if hook.type == 'EMAHook':
                _flatten('ema', hook, flat)
        return flat

    def _settings(self, stage: Stage) -> dict:
        """Settings of a stage, with the length of its round."""
        settings = super()._settings(stage)
        lengths = settings.get('max_iters')
        if stage.round and isinstance(lengths, (list, tuple)):
            settings = dict(settings, max_iters=lengths[stage.round - 1])
        return settings

    def _set_data(self, cfg: Config, stage: Stage, settings: dict, stage_dir: str) -> None:
        """One labeled source in round 0, labeled and soft-labeled later."""
        loader = cfg.train_dataloader
        labeled, unlabeled = loader.dataset.datasets
        member = self.plan.member(stage.member)
        if stage.round == 0 and member.get('labeled_list'):
            labeled.ann_file = member['labeled_list']
        if stage.round:
            unlabeled.soft_labels = f'{stage_dir}/{SOFT_LABELS}'
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
        pipeline = labeling.pop('pipeline', None) or self.cfg.test_dataloader.dataset.pipeline
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
