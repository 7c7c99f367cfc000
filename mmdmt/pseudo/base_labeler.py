"""What labeling images has in common for segmentation and classification."""

import copy
import inspect
import time
from abc import ABCMeta, abstractmethod
from functools import partial
from typing import Any, Callable, Dict, Iterable, Iterator, List, Sequence, Tuple

import torch
from mmengine.config import ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.dist import get_rank, get_world_size, is_main_process
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from mmdmt.checkpoint import checkpoint_identity, load_checkpoint_file
from mmdmt.checks import check_count, refuse_unknown_keys
from mmdmt.distributed import from_main
from mmdmt.finite import refuse_non_finite
from mmdmt.registry import DATASETS, MODELS
from mmdmt.weights import load_weights

#: Labels images by their numbers: yields number and class probabilities, (C, *) float32.
Predict = Callable[[Sequence[int]], Iterator[Tuple[int, Tensor]]]


class UnreadableImageError(RuntimeError):
    """An image that has to be labeled cannot be loaded."""


class BaseLabeler(metaclass=ABCMeta):
    """Labels images with a trained network; a subclass decides what is stored and how.

    The keyword-only arguments of a subclass are the options that ``mutual.labeling`` may have.

    Args:
        model (dict): Config of an ordinary network of mmseg or mmpretrain.
        dataset (dict): Config of the images with a test pipeline; its data infos have ``name``.
        batch_size (int): Images per forward.
        num_workers (int): Loader workers.
    """

    def __init__(self, model: dict, dataset: dict, batch_size: int, num_workers: int) -> None:
        check_count('labeling.batch_size', batch_size, 1)
        check_count('labeling.num_workers', num_workers, 0)
        self.model_cfg = model
        self.dataset_cfg = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers

    @classmethod
    def check_options(cls, options: Dict[str, Any]) -> None:
        """Refuse options that the constructor does not know or does not take.

        Raises:
            ValueError: Naming the option and what is known.
        """
        parameters = inspect.signature(cls).parameters.values()
        known = [item.name for item in parameters if item.kind is item.KEYWORD_ONLY]
        refuse_unknown_keys('mutual.labeling', options, known)
        cls('', {}, {}, **options)

    def run(self, checkpoint: str, ratio: float, trusted: Sequence[str] = ()) -> Dict[str, Any]:
        """Label all images that are not labeled yet.

        Args:
            checkpoint (str): Weights of the network that labels.
            ratio (float): Share that is kept, in (0, 1].
            trusted (Sequence[str]): Checkpoints that may hold more than tensors.

        Returns:
            dict: The manifest of the labels.

        Raises:
            UnreadableImageError: If an image cannot be loaded.
            CheckpointMismatchError: If the weights do not fit the network.
            NonFiniteError: If a weight is NaN or infinite.
        """
        dataset = DATASETS.build(copy.deepcopy(self.dataset_cfg))
        names = [dataset.get_data_info(index)['name'] for index in range(len(dataset))]
        model = MODELS.build(ConfigDict(copy.deepcopy(self.model_cfg)))
        identity = from_main(lambda: checkpoint_identity(checkpoint))
        meta = dict(checkpoint=identity, ratio=ratio, **self.settings(model, names))

        def load() -> None:
            load_weights(model, finite_weights(checkpoint, trusted), checkpoint)

        return self.label(names, meta, partial(self._predict, model, dataset, load))

    @abstractmethod
    def settings(self, model: nn.Module, names: List[str]) -> Dict[str, Any]:
        """What else than checkpoint and ratio decides the labels, JSON values."""

    @abstractmethod
    def label(self, names: List[str], meta: Dict[str, Any], predict: Predict) -> Dict[str, Any]:
        """Store the labels of all images, unless they are there; runs on all ranks.

        Args:
            names (list[str]): Images.
            meta (dict): What decides the labels: checkpoint, ratio and :meth:`settings`.
            predict (Callable): Gives probabilities of images by their positions in ``names``.

        Returns:
            dict: The manifest, ``meta`` and what the labels are like.
        """

    @abstractmethod
    def predict_batch(self, model: nn.Module, batch: Dict[str, list]) -> List[Tensor]:
        """Class probabilities (C, *) of each image of a batch as loaded."""

    @abstractmethod
    def summary(self, manifest: Dict[str, Any]) -> str:
        """One line about finished labels."""

    @abstractmethod
    def class_rows(self, manifest: Dict[str, Any]) -> List[Dict[str, float]]:
        """For :func:`~mmdmt.pseudo.report.class_table`, a row per class."""

    @torch.no_grad()
    def _predict(
        self, model: nn.Module, dataset: Any, load: Callable, indices: Sequence[int]
    ) -> Iterator[Tuple[int, Tensor]]:
        """Probabilities of some images, in order; weights are read only if there are any."""
        if not indices:
            return
        load()
        model.to(get_device()).eval()
        progress, remaining = Progress(len(indices)), iter(indices)
        for batch in image_batches(dataset, indices, self.batch_size, self.num_workers):
            probs = self.predict_batch(model, batch)
            yield from ((next(remaining), prob) for prob in probs)
            progress.step(len(probs))


def image_batches(
    dataset: Any, indices: Sequence[int], batch_size: int, num_workers: int
) -> DataLoader:
    """Batches of some images of a dataset, in order; the errors of its workers name the image."""
    return DataLoader(
        _Images(dataset, indices),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=pseudo_collate,
    )


def finite_weights(checkpoint: str, trusted: Sequence[str]) -> Dict[str, Tensor]:
    """Weights of a checkpoint for labeling; a ``NonFiniteError`` if one is NaN or infinite."""
    content = load_checkpoint_file(checkpoint, trusted=trusted)
    weights = content.get('state_dict', content)
    refuse_non_finite(weights, f'checkpoint {checkpoint}, which should label images,')
    return weights


def own_share(items: Iterable) -> List[Any]:
    """The part of some items that this rank works on."""
    return list(items)[get_rank() :: get_world_size()]


class Progress:
    """Logs the progress of a pass about ten times, with the time that is left."""

    def __init__(self, total: int, what: str = 'Labels') -> None:
        self.total, self.done, self.began, self.what = total, 0, time.time(), what
        self.every = max(1, total // 10)

    def step(self, count: int) -> None:
        """Count images that are labeled."""
        before, self.done = self.done, self.done + count
        if self.done // self.every > before // self.every and is_main_process():
            left = (time.time() - self.began) / self.done * (self.total - self.done)
            print_log(f'{self.what} [{self.done}/{self.total}], {left:.0f} s left', 'current')


class _Images(Dataset):
    """Part of a dataset whose errors name the image: Pillow's do not."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Any:
        index = self.indices[position]
        try:
            return self.dataset[index]
        except MemoryError:  # no fault of the file
            raise
        except Exception as error:
            info = self.dataset.get_data_info(index)
            reason = ' '.join(str(error).split())  # OpenCV's have line breaks
            raise UnreadableImageError(
                f'{info.get("img_path", info["name"])} cannot be loaded, so that it cannot be '
                f'labeled ({type(error).__name__}: {reason}). Replace the file or take it off the '
                "list of unlabeled images; `default_hooks.dataset_check.mode='full'` finds all "
                'such files before training'
            ) from error
