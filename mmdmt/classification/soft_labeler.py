"""Labels images with a trained classifier: class probabilities into one file."""

import hashlib
import logging
from typing import Any, Dict, List, Optional

import numpy as np
import torch
from mmengine.dist import all_gather_object
from mmengine.logging import print_log
from torch import Tensor, nn

from mmdmt.checks import check_choice
from mmdmt.classification.soft_labels import SELECTIONS, SoftLabelStore, select_by_confidence
from mmdmt.distributed import from_main
from mmdmt.pseudo.base_labeler import BaseLabeler, Predict, own_share
from mmdmt.pseudo.report import class_rows
from mmdmt.pseudo.store import StoreMismatchError
from mmdmt.registry import TASK_UTILS


@TASK_UTILS.register_module()
class SoftLabeler(BaseLabeler):
    """One forward per image; probabilities and the selection go into a :class:`SoftLabelStore`.

    The images are split over the ranks and gathered on the first. The file of the same checkpoint,
    images and ratio is used as it is, a damaged one is made again. A pass that was cut off is begun
    again: nothing is left of it, and images of classification are quickly labeled.

    Args:
        store (str): The file.
        model, dataset, batch_size, num_workers: See :class:`~mmdmt.pseudo.BaseLabeler`.
        selection (str): Rule of :func:`select_by_confidence`. Defaults to 'strict', as published.
    """

    def __init__(
        self,
        store: str,
        model: dict,
        dataset: dict,
        *,
        batch_size: int = 256,
        num_workers: int = 2,
        selection: str = 'strict',
    ) -> None:
        super().__init__(model, dataset, batch_size, num_workers)
        check_choice('labeling.selection', selection, SELECTIONS)
        self.store = SoftLabelStore(store)
        self.selection = selection

    def settings(self, model: nn.Module, names: List[str]) -> Dict[str, Any]:
        """The rule, and which images they are."""
        digest = hashlib.sha256('\n'.join(names).encode()).hexdigest()
        return dict(selection=self.selection, names_sha256=digest)

    def predict_batch(self, model: nn.Module, batch: Dict[str, list]) -> List[Tensor]:
        """Class probabilities (C,) of each image."""
        data = model.data_preprocessor(batch, False)
        samples = model.predict(data['inputs'], data['data_samples'])
        return [sample.pred_score.float() for sample in samples]

    def label(self, names: List[str], meta: Dict[str, Any], predict: Predict) -> Dict[str, Any]:
        """Label all images, unless the file is there; see :meth:`BaseLabeler.label`."""
        finished = from_main(lambda: self._finished(meta))
        if finished is not None:
            return finished
        found = [prob.cpu() for _, prob in predict(own_share(range(len(names))))]
        parts = all_gather_object(torch.stack(found).numpy() if found else None)
        return from_main(lambda: self._write(names, parts, meta))

    def summary(self, manifest: Dict[str, Any]) -> str:
        """One line about a finished file."""
        return (
            f'Soft labels: {manifest["num_images"]} images by {manifest["checkpoint"]["file"]}, '
            f'ratio {manifest["ratio"]:g}, {manifest["num_selected"]} selected, mean confidence '
            f'{manifest["mean_confidence"]:.3f}, in {self.store.path}'
        )

    def class_rows(self, manifest: Dict[str, Any]) -> List[Dict[str, float]]:
        """Of how many images each class is the label, and how many of them were selected."""
        return class_rows(manifest['predicted'], manifest['kept'])

    # ------------------------------------------------------------------ parts

    def _finished(self, meta: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Manifest of the file if it is of this checkpoint, ratio and images."""
        if not self.store.is_complete:
            return None
        try:
            manifest = self.store.read().manifest  # all of it, so that any damage is found
        except StoreMismatchError as error:
            print_log(f'{error}; it is made again', logger='current', level=logging.WARNING)
            return None
        return manifest if all(manifest.get(key) == meta[key] for key in meta) else None

    def _write(
        self, names: List[str], parts: List[Optional[np.ndarray]], meta: Dict[str, Any]
    ) -> Dict[str, Any]:
        """Put the parts of the ranks together, select, and write the file."""
        probabilities = np.zeros((len(names), parts[0].shape[1]), np.float32)
        for rank, part in enumerate(parts):
            if part is not None:
                probabilities[rank :: len(parts)] = part
        confidence, label = probabilities.max(1), probabilities.argmax(1)
        selected = select_by_confidence(confidence, meta['ratio'], self.selection, label)
        return self.store.write(names, probabilities, selected, meta)
