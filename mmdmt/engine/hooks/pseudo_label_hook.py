"""Labels the unlabeled images before a stage of offline training."""

from collections.abc import Sequence
from typing import Optional, Tuple

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.datasets.semi_dataset import seeded
from mmdmt.pseudo.report import class_names, class_table, label_scalars
from mmdmt.registry import HOOKS, TASK_UTILS


@HOOKS.register_module()
class PseudoLabelHook(Hook):
    """Makes the pseudo-labels of a stage before its first iteration.

    Labels that are there already are used as they are; an interrupted pass goes on where it was.

    Args:
        labeler (dict): Config of the labeler, ``mmdmt.PseudoLabeler`` for segmentation or
            ``mmdmt.SoftLabeler`` for classification.
        checkpoint (str): Weights of the network that labels.
        ratio (float): Share of the labels that is kept, in (0, 1].
        ranker (dict, optional): Config of a ``mmdmt.ReliabilityRanker`` that lists, before, which
            images the stage uses.
    """

    priority = 'HIGH'

    def __init__(
        self, labeler: dict, checkpoint: str, ratio: float, ranker: Optional[dict] = None
    ) -> None:
        self.labeler = TASK_UTILS.build(labeler)
        self.ranker = TASK_UTILS.build(ranker) if ranker else None
        self.checkpoint = checkpoint
        self.ratio = ratio
        self._labeled = False

    def before_loading(self, runner: Runner) -> None:
        """Label before any loader is built, and report what the labels are like.

        Official mmengine starts loader workers while it builds the train loop, so that they would
        ask for labels that are not there yet at ``before_train``.
        """
        trusted = runner.cfg.get('trusted_checkpoints', ())
        # The generators are put back: a fresh network must start from the same weights, whether or
        # not labels were there already.
        with seeded(0):
            if self.ranker:
                self._log_ranking(runner, self.ranker.run(trusted))
            manifest = self.labeler.run(self.checkpoint, self.ratio, trusted=trusted)
        self._labeled = True
        rows = self.labeler.class_rows(manifest)
        labeled = runner.cfg.train_dataloader.dataset.get('datasets', [])
        names = class_names([self.labeler.dataset_cfg, *labeled], len(rows))
        runner.logger.info(f'{self.labeler.summary(manifest)}\n{class_table(rows, names)}')
        runner.visualizer.add_scalars(label_scalars(manifest, rows, names), step=0)

    def _log_ranking(self, runner: Runner, ranking: Sequence[Tuple[str, float]]) -> None:
        worst = ', '.join(f'{name} {score:.3f}' for name, score in ranking[:-6:-1])
        runner.logger.info(
            f'Reliability of {len(ranking)} images in {self.ranker.out}: median '
            f'{ranking[len(ranking) // 2][1]:.3f}; the lowest, worth labeling next: {worst}'
        )

    def before_train(self, runner: Runner) -> None:
        """Label under runners without ``before_loading``."""
        if not self._labeled:
            self.before_loading(runner)
