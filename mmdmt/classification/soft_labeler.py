"""Labels images with a trained classifier: class probabilities into one file."""

import copy
import hashlib
import logging
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.dist import (
    all_gather_object,
    get_rank,
    get_world_size,
)
from mmengine.logging import print_log

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.classification.soft_labels import SoftLabelStore, select_by_confidence
from mmdmt.distributed import from_main
from mmdmt.pseudo.labeler import checkpoint_identity
from mmdmt.pseudo.loading import image_loader
from mmdmt.pseudo.store import StoreMismatchError
from mmdmt.registry import DATASETS, MODELS


class SoftLabeler:
    """One forward per image; probabilities and the selection go into a :class:`SoftLabelStore`.

    The images are split over the ranks and gathered on the first. The file of the same checkpoint,
    images and ratio is used as it is, a damaged one is made again. A pass that was cut off is begun
    again: nothing is left of it, and images of classification are quickly labeled.

    Args:
        path (str): The file.
        model (dict): Config of an ordinary mmpretrain classifier.
        dataset (dict): Config of the images with a test pipeline; its data infos have ``name``.
        batch_size (int): Images per forward. Defaults to 256.
        num_workers (int): Loader workers. Defaults to 2.
        selection (str): Rule of :func:`select_by_confidence`. Defaults to 'strict', as published.
    """

    def __init__(
        self,
        path: str,
        model: dict,
        dataset: dict,
        batch_size: int = 256,
        num_workers: int = 2,
        selection: str = 'strict',
    ) -> None:
        self.store = SoftLabelStore(path)
        self.model_cfg = model
        self.dataset_cfg = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.selection = selection

    def run(self, checkpoint: str, ratio: float, trusted: Sequence[str] = ()) -> Dict[str, Any]:
        """Label all images, unless the file is there.

        Args:
            checkpoint (str): Weights of the network that labels.
            ratio (float): Share of the images that is selected, in (0, 1].
            trusted (Sequence[str]): Checkpoints that may hold more than tensors.

        Returns:
            dict: The manifest of the file.

        Raises:
            UnreadableImageError: If an image cannot be loaded.
        """
        dataset = DATASETS.build(copy.deepcopy(self.dataset_cfg))
        names = [dataset.get_data_info(index)['name'] for index in range(len(dataset))]
        meta = from_main(lambda: self._meta(checkpoint, ratio, names))
        finished = from_main(lambda: self._finished(meta))
        if finished is not None:
            return finished
        model = MODELS.build(copy.deepcopy(self.model_cfg))
        content = load_checkpoint_file(checkpoint, trusted=trusted)
        model.load_state_dict(content.get('state_dict', content))
        own = list(range(get_rank(), len(names), get_world_size()))
        parts = all_gather_object(self._predict(model.to(get_device()).eval(), dataset, own))
        return from_main(lambda: self._write(names, parts, ratio, meta))

    def summary(self, manifest: Dict[str, Any]) -> str:
        """One line about a finished file."""
        return (
            f'Soft labels: {manifest["num_images"]} images by {manifest["checkpoint"]["file"]}, '
            f'ratio {manifest["ratio"]:g}, {manifest["num_selected"]} selected (per class '
            f'{manifest["kept"]}), mean confidence {manifest["mean_confidence"]:.3f}, in '
            f'{self.store.path}'
        )

    # ------------------------------------------------------------------ parts

    def _meta(self, checkpoint: str, ratio: float, names: Sequence[str]) -> Dict[str, Any]:
        return dict(
            checkpoint=checkpoint_identity(checkpoint),
            ratio=ratio,
            selection=self.selection,
            names_sha256=hashlib.sha256('\n'.join(names).encode()).hexdigest(),
        )

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

    @torch.no_grad()
    def _predict(self, model: torch.nn.Module, dataset, indices: List[int]) -> np.ndarray:
        """Class probabilities of some of the images, (n, C) float32."""
        loader = image_loader(dataset, indices, self.batch_size, self.num_workers)
        found = []
        for batch in loader:
            data = model.data_preprocessor(batch, False)
            samples = model.predict(data['inputs'], data['data_samples'])
            found.append(torch.stack([sample.pred_score for sample in samples]).float().cpu())
        return torch.cat(found).numpy() if found else np.zeros((0, 1), np.float32)

    def _write(
        self, names: List[str], parts: List[np.ndarray], ratio: float, meta: Dict[str, Any]
    ) -> Dict[str, Any]:
        """Put the parts of the ranks together, select, and write the file."""
        classes = max(part.shape[1] for part in parts)
        probabilities = np.zeros((len(names), classes), np.float32)
        for rank, part in enumerate(parts):
            if len(part):
                probabilities[rank :: len(parts)] = part
        selected = select_by_confidence(probabilities.max(1), ratio, self.selection)
        return self.store.write(names, probabilities, selected, meta)
