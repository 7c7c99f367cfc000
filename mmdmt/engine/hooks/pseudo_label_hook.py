"""Labels the unlabeled images before a stage of off-line training."""

from typing import Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.registry import HOOKS


@HOOKS.register_module()
class PseudoLabelHook(Hook):
    """Makes the pseudo-labels of a stage before its first iteration.

    One forward per image: label and confidence are stored, class-balanced thresholds come from
    the same pass and are applied when the labels are read. A finished store of the same
    checkpoint and ratio is used as it is; an interrupted pass goes on where it was.

    Args:
        store_dir (str): Folder of the :class:`~mmdmt.pseudo.PseudoLabelStore`.
        model (dict): Config of the network that labels, an ordinary mmseg segmentor.
        checkpoint (str): Its weights.
        dataset (dict): Config of the unlabeled images with a test pipeline.
        ratio (float): Share of pixels kept per class, in (0, 1].
        batch_size (int): Images per forward; above 1 only for images of one size. Defaults to 1.
        num_workers (int): Loader workers. Defaults to 2.
        pixel_stride (int): Thresholds use every n-th pixel. Defaults to 16, as published.
        bins (int, optional): Bins of a constant-memory histogram; exact ranks by default.
    """

    priority = 'HIGH'

    def __init__(
        self,
        store_dir: str,
        model: dict,
        checkpoint: str,
        dataset: dict,
        ratio: float,
        batch_size: int = 1,
        num_workers: int = 2,
        pixel_stride: int = 16,
        bins: Optional[int] = None,
    ) -> None:
        self.checkpoint = checkpoint
        self.labeler = PseudoLabeler(
            store_dir,
            model=model,
            dataset=dataset,
            batch_size=batch_size,
            num_workers=num_workers,
            pixel_stride=pixel_stride,
            bins=bins,
        )
        self.ratio = ratio
        self._labeled = False

    def before_loading(self, runner: Runner) -> None:
        """Label before any loader is built, and log how much was kept.

        Official mmengine starts loader workers while it builds the train loop, so that they would
        ask for labels that are not there yet at ``before_train``.
        """
        trusted = runner.cfg.get('trusted_checkpoints', ())
        manifest = self.labeler.run(self.checkpoint, self.ratio, trusted=trusted)
        self._labeled = True
        runner.logger.info(self.labeler.summary(manifest))

    def before_train(self, runner: Runner) -> None:
        """Label under runners without ``before_loading``."""
        if not self._labeled:
            self.before_loading(runner)
