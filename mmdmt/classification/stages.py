"""Configs of the stages of mutual training for image classification."""

import copy
import os.path as osp
from typing import List, Sequence

import numpy as np
from mmengine.config import Config, ConfigDict

from mmdmt.checks import check_range, refuse_unknown_keys
from mmdmt.classification.soft_labels import select_by_confidence
from mmdmt.datasets.splits.files import read_list
from mmdmt.engine.mutual import BUILDERS
from mmdmt.engine.mutual.stage_config import StageConfigBuilder

#: What ``mmdmt.MutualClassifier`` has beside the arguments of an ``ImageClassifier``.
PSEUDO_LOSS_KEYS = frozenset({'gamma1', 'gamma2', 'ramp', 'mixup_alpha', 'update_bn_twice'})
DEFAULT_LOSS = dict(gamma1=4.0, gamma2=4.0)


class ClassificationStageConfigBuilder(StageConfigBuilder):
    """Builds stage configs for ``mutual.task='classification'``.

    What differs from segmentation:

    - The model is a ``mmdmt.MutualClassifier``; ``mutual.pseudo_loss`` holds what is different in
      the rounds: ``gamma1``, ``gamma2``, ...
    - A round starts from random weights (``round.from_scratch``, True by default, as published).
    - The most confident ``ratio`` of the images is used, over all classes together; soft labels
      lie in ``soft_labels.npz`` of the stage.
    - ``PackInputs`` of the unlabeled images hands the soft labels on, whether or not its
      ``algorithm_keys`` name it.

    Args:
        cfg (Config): The whole config, whose ``train_dataloader.dataset`` is a
            ``mmdmt.SemiDataset`` of two ``mmdmt.ListedDataset``, the second with
            ``labeled=False``, plus ``mutual``.

    Raises:
        ValueError: On unknown or missing keys, sources that are not as above, or a ratio that
            selects no image, naming what is wrong: nothing is left to fail after round 0.
    """

    model_types = ('mmdmt.MutualClassifier', 'MutualClassifier')
    default_metric = 'accuracy/top1'
    labeler = 'mmdmt.SoftLabeler'
    ranker = None
    store = 'soft_labels.npz'
    check_name = staticmethod(str)  # any: they are lines of one file

    def __init__(self, cfg: Config) -> None:
        super().__init__(cfg)
        if self.mutual.get('ensemble'):
            raise ValueError('`mutual.ensemble` is for segmentation: take it out of the config')
        _check_pseudo_loss(self.mutual.get('pseudo_loss', {}))
        labeled, unlabeled = cfg.train_dataloader.dataset.datasets
        _check_sources(labeled, unlabeled)
        rule = self.mutual.get('labeling', {}).get('selection', 'strict')
        _check_ratios(self.plan.ratios, rule, unlabeled)
        self.mutual.setdefault('round', {}).setdefault('from_scratch', True)

    def _read_labels(self, source: ConfigDict, store: str) -> None:
        """Let the unlabeled source give the soft labels of a file."""
        source.soft_labels = store
        source.pipeline = _with_soft_labels(source.pipeline)

    def _set_loss(self, model: ConfigDict) -> None:
        """Weigh the soft labels."""
        model.update(self.mutual.get('pseudo_loss', DEFAULT_LOSS))


BUILDERS['classification'] = ClassificationStageConfigBuilder


def _check_pseudo_loss(pseudo_loss: dict) -> None:
    refuse_unknown_keys('mutual.pseudo_loss', pseudo_loss, PSEUDO_LOSS_KEYS)
    for key in ('gamma1', 'gamma2', 'mixup_alpha'):
        check_range(f'mutual.pseudo_loss.{key}', pseudo_loss.get(key, 0), 0)


def _check_sources(labeled: dict, unlabeled: dict) -> None:
    """Refuse sources that would be trained on with labels that are missing or hidden."""
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


def _check_ratios(ratios: Sequence[float], rule: str, unlabeled: dict) -> None:
    """Refuse a ratio of so few images that none would be selected."""
    path = unlabeled.get('ann_file')
    path = osp.join(unlabeled.get('data_root') or '', path) if path else ''
    if not osp.isfile(path):  # all images of a folder, or a list that the data check will miss
        return
    count = len(read_list(path))
    for ratio in ratios if count else ():
        try:
            select_by_confidence(np.linspace(0, 1, count), ratio, rule, np.zeros(count))
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
