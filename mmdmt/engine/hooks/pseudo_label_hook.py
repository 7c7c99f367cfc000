"""Labels the unlabeled images before a stage of off-line training."""

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmdmt.pseudo.labeler import PseudoLabeler
from mmdmt.pseudo.report import class_names, class_table, label_scalars
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
        **labeling: Other arguments of :class:`~mmdmt.pseudo.labeler.PseudoLabeler`:
            ``batch_size``, ``num_workers``, ``pixel_stride``, ``bins``, ``rule``, ``balance``,
            ``threshold``, ``amp``, ``tta``.
    """

    priority = 'HIGH'

    def __init__(
        self, store_dir: str, model: dict, checkpoint: str, dataset: dict, ratio: float, **labeling
    ) -> None:
        self.checkpoint = checkpoint
        self.labeler = PseudoLabeler(store_dir, model=model, dataset=dataset, **labeling)
        self.ratio = ratio
        self._labeled = False

    def before_loading(self, runner: Runner) -> None:
        """Label before any loader is built, and report what the labels are like.

        Official mmengine starts loader workers while it builds the train loop, so that they would
        ask for labels that are not there yet at ``before_train``.
        """
        trusted = runner.cfg.get('trusted_checkpoints', ())
        manifest = self.labeler.run(self.checkpoint, self.ratio, trusted=trusted)
        self._labeled = True
        labeled = runner.cfg.train_dataloader.dataset.get('datasets', [])
        names = class_names([self.labeler.dataset_cfg, *labeled], manifest['num_classes'])
        runner.logger.info(f'{self.labeler.summary(manifest)}\n{class_table(manifest, names)}')
        runner.visualizer.add_scalars(label_scalars(manifest, names), step=0)

    def before_train(self, runner: Runner) -> None:
        """Label under runners without ``before_loading``."""
        if not self._labeled:
            self.before_loading(runner)
