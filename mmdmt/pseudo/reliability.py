"""How stable the predictions of an image were during training: which to trust, which to label."""

import copy
import json
import os.path as osp
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import torch
from mmengine.config import ConfigDict
from mmengine.device import get_device
from mmengine.dist import all_gather_object
from torch import Tensor

from mmdmt.checkpoint import checkpoint_identity
from mmdmt.checks import check_count, check_range
from mmdmt.distributed import from_main
from mmdmt.files import write_text_atomically
from mmdmt.pseudo.base_labeler import Progress, finite_weights, image_batches, own_share
from mmdmt.pseudo.labeler import most_probable
from mmdmt.pseudo.prediction import predict_probabilities
from mmdmt.registry import DATASETS, MODELS, TASK_UTILS
from mmdmt.weights import load_weights

#: All images with their reliability, best first, and the names of those that are used first.
RANKING, RELIABLE = 'reliability.json', 'reliable.txt'


def agreement(one: Tensor, two: Tensor, num_classes: int) -> float:
    """Mean IoU of two label maps (H, W) long, over the classes that occur in either, in [0, 1].

    Pixels of other values, such as 255, do not count; without any pixel it is 0.
    """
    counted = (one < num_classes) & (two < num_classes)
    joint = torch.bincount(num_classes * one[counted] + two[counted], minlength=num_classes**2)
    joint = joint.view(num_classes, num_classes).double()
    overlap = joint.diagonal()
    union = joint.sum(dim=0) + joint.sum(dim=1) - overlap
    present = union > 0
    return float((overlap[present] / union[present]).sum() / present.sum().clamp(min=1))


@TASK_UTILS.register_module()
class ReliabilityRanker:
    """Ranks images by how well earlier checkpoints of a training agree with its last one.

    Yang et al., "ST++: Make Self-Training Work Better for Semi-Supervised Semantic Segmentation",
    CVPR 2022: the reliability of an image is the mean, over the earlier checkpoints, of the mIoU
    of their prediction with that of the last one (:func:`agreement`). No mask is needed: the images
    at the bottom of the list are those that are worth labeling next.

    Each checkpoint predicts each image once, as it is. The images are split over the ranks. A pass
    that was interrupted begins anew; a finished one is kept.

    Args:
        out (str): Folder for ``reliability.json`` and ``reliable.txt``.
        model (dict): Config of an ordinary segmentor.
        dataset (dict): Config of the images with a test pipeline; its data infos have ``name``.
        checkpoints (Sequence[str]): Of one training, the last one last.
        share (float): Share of the images, rounded down but at least one, that is on
            ``reliable.txt``.
        batch_size, num_workers, amp: See :class:`~mmdmt.pseudo.PseudoLabeler`.
    """

    def __init__(
        self,
        out: str,
        model: dict,
        dataset: dict,
        checkpoints: Sequence[str],
        share: float = 0.5,
        batch_size: int = 1,
        num_workers: int = 2,
        amp: bool = False,
    ) -> None:
        check_count('the number of checkpoints', len(checkpoints), 2)
        check_range('share', share, 0, 1)
        self.out, self.model_cfg, self.dataset_cfg = out, model, dataset
        self.checkpoints, self.share = list(checkpoints), share
        self.batch_size, self.num_workers, self.amp = batch_size, num_workers, amp

    def run(self, trusted: Sequence[str] = ()) -> List[Tuple[str, float]]:
        """Rank all images, unless that was done.

        Args:
            trusted (Sequence[str]): Checkpoints that may hold more than tensors.

        Returns:
            list[tuple[str, float]]: Name and reliability in [0, 1] of each image, best first;
            equal ones in the order of the dataset.

        Raises:
            UnreadableImageError: If an image cannot be loaded.
            CheckpointMismatchError: If weights do not fit the network.
            NonFiniteError: If a weight is NaN or infinite.
        """
        dataset = DATASETS.build(copy.deepcopy(self.dataset_cfg))
        names = [dataset.get_data_info(index)['name'] for index in range(len(dataset))]
        meta = from_main(lambda: dict(checkpoints=list(map(checkpoint_identity, self.checkpoints))))
        meta.update(share=self.share, amp=self.amp)
        found = from_main(lambda: self._finished(meta, names))
        if found is None:
            own = dict(self._scores(dataset, own_share(range(len(names))), trusted))
            scores = {k: v for part in all_gather_object(own) for k, v in part.items()}
            order = sorted(range(len(names)), key=lambda index: -scores[index])  # stable
            found = [(names[index], scores[index]) for index in order]
            from_main(lambda: self._write(meta, found))
        return found

    def _finished(self, meta: Dict[str, Any], names: List[str]) -> Any:
        """The ranking that is there, if it is of these checkpoints and images."""
        try:
            with open(osp.join(self.out, RANKING), encoding='utf-8') as file:
                content = json.load(file)
            found = [tuple(row) for row in content.pop('images')]
        except (FileNotFoundError, ValueError, KeyError):
            return None
        same = content == meta and osp.exists(osp.join(self.out, RELIABLE))
        same = same and sorted(name for name, _ in found) == sorted(names)
        return found if same else None

    def _write(self, meta: Dict[str, Any], found: List[Tuple[str, float]]) -> None:
        """Both files; the ranking says that both are there."""
        kept = found[: max(1, int(len(found) * self.share))]
        text = ''.join(f'{name}\n' for name, _ in kept)
        write_text_atomically(osp.join(self.out, RELIABLE), text)
        content = dict(meta, images=found)
        write_text_atomically(osp.join(self.out, RANKING), json.dumps(content, indent=1))

    @torch.no_grad()
    def _scores(
        self, dataset: Any, indices: Sequence[int], trusted: Sequence[str]
    ) -> Iterator[Tuple[int, float]]:
        """Position and reliability of some images."""
        *earlier, last = [self._network(path, trusted) for path in self.checkpoints]
        progress, remaining = Progress(len(indices), 'Reliability'), iter(indices)
        for batch in image_batches(dataset, indices, self.batch_size, self.num_workers):
            labels = self._labels(last, batch)
            others = zip(*[self._labels(model, batch) for model in earlier])
            for label, different in zip(labels, others):
                values = [agreement(other, label, last.num_classes) for other in different]
                yield next(remaining), sum(values) / len(values)
            progress.step(len(labels))

    def _network(self, path: str, trusted: Sequence[str]) -> torch.nn.Module:
        model = MODELS.build(ConfigDict(copy.deepcopy(self.model_cfg)))
        load_weights(model, finite_weights(path, trusted), path)
        return model.to(get_device()).eval()

    def _labels(self, model: torch.nn.Module, batch: Dict[str, list]) -> List[Tensor]:
        # A batch of its own for each network: predictions are written into the samples.
        batch = dict(batch, data_samples=copy.deepcopy(batch['data_samples']))
        found = map(most_probable, predict_probabilities(model, batch, self.amp))
        # 255 where nothing was measured
        return [label.masked_fill(confidence <= 0, 255) for label, confidence in found]
