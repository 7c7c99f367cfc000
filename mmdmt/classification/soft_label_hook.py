"""Labels the unlabeled images before a stage of off-line training of a classifier."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.classification.soft_labeler import SoftLabeler
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class SoftLabelHook(Hook):
    """Makes the soft labels of a stage before its data sets are built.

    Args:
        path (str): File of the :class:`~mmdmt.pseudo.SoftLabelStore`.
        model (dict): Config of the network that labels, an ordinary mmpretrain classifier.
        checkpoint (str): Its weights.
        dataset (dict): Config of the unlabeled images with a test pipeline.
        ratio (float): Share of the images that is selected, over all classes together, in (0, 1].
        batch_size (int): Images per forward. Defaults to 256.
        num_workers (int): Loader workers. Defaults to 2.
        selection (str): 'strict' as published, or 'rank', see
            :func:`~mmdmt.classification.soft_labels.select_by_confidence`. Defaults to 'strict'.
    """

    priority = 'HIGH'

    def __init__(
        self,
        path: str,
        model: dict,
        checkpoint: str,
        dataset: dict,
        ratio: float,
        batch_size: int = 256,
        num_workers: int = 2,
        selection: str = 'strict',
    ) -> None:
        self.checkpoint = checkpoint
        self.ratio = ratio
        self.labeler = SoftLabeler(path, model, dataset, batch_size, num_workers, selection)

    def before_loading(self, runner: Runner) -> None:
        """Label, and log what was selected. Which images are drawn depends on it."""
        trusted = runner.cfg.get('trusted_checkpoints', ())
        manifest = self.labeler.run(self.checkpoint, self.ratio, trusted=trusted)
        runner.logger.info(self.labeler.summary(manifest))
