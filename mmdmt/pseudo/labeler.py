"""Labels a folder of images with a trained segmentor and stores the result."""

import hashlib
import os.path as osp
import time
from typing import Any, Dict, List, Optional, Sequence

import torch
from mmengine.dataset import pseudo_collate
from mmengine.device import get_device
from mmengine.dist import (
    all_gather_object,
    barrier,
    broadcast_object_list,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.logging import print_log
from mmseg.structures import SegDataSample
from torch import Tensor
from torch.utils.data import DataLoader, Subset

from mmdmt.engine.checkpoint import load_checkpoint_file
from mmdmt.models.segmentors.semi_base import build_segmentor
from mmdmt.registry import DATASETS

from .store import PseudoLabelStore
from .thresholds import ClassBalancedThreshold


def checkpoint_identity(path: str) -> Dict[str, Any]:
    """What tells one checkpoint from another: file name, size and SHA-256 of the content."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return dict(file=osp.basename(path), bytes=osp.getsize(path), sha256=digest.hexdigest())


def label_and_confidence(seg_logits: Tensor) -> tuple:
    """Most probable class (H, W), uint8, and its softmax probability (H, W) of (C, H, W) logits."""
    confidence, label = seg_logits.float().softmax(dim=0).max(dim=0)
    return label.to(torch.uint8), confidence


class PseudoLabeler:
    """One forward per image: class and confidence into a store, thresholds from the same pass.

    The images are split over the ranks; images that are in the store already are not labeled
    again. Thresholds are computed from the stored (quantized) values, so that an interrupted pass
    that was continued ends with exactly the manifest of an uninterrupted one, on any number of
    ranks.

    Args:
        store_dir (str): Folder of the store.
        model (dict): Config of an ordinary mmseg segmentor.
        dataset (dict): Config of the images with a test pipeline; its data infos have ``name``.
        batch_size (int): Images per forward; above 1 only for images of one size. Defaults to 1.
        num_workers (int): Loader workers. Defaults to 2.
        pixel_stride (int): Thresholds use every n-th pixel. Defaults to 16.
        bins (int, optional): Bins of a constant-memory histogram; exact ranks by default.
    """

    def __init__(
        self,
        store_dir: str,
        model: dict,
        dataset: dict,
        batch_size: int = 1,
        num_workers: int = 2,
        pixel_stride: int = 16,
        bins: Optional[int] = None,
    ) -> None:
        self.store = PseudoLabelStore(store_dir)
        self.model_cfg = model
        self.dataset_cfg = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pixel_stride = pixel_stride
        self.bins = bins

    def run(self, checkpoint: str, ratio: float, trusted: Sequence[str] = ()) -> Dict[str, Any]:
        """Label all images that are not labeled yet and finish the store.

        Args:
            checkpoint (str): Weights of the network that labels.
            ratio (float): Share of pixels kept per class, in (0, 1].
            trusted (Sequence[str]): Checkpoints that may hold more than tensors.

        Returns:
            dict: The manifest of the finished store.
        """
        dataset = DATASETS.build(self.dataset_cfg)
        names = [dataset.get_data_info(index)['name'] for index in range(len(dataset))]
        model = build_segmentor(self.model_cfg)
        meta = self._meta(checkpoint, ratio, model.num_classes)
        finished = _from_main(lambda: self._open(names, meta))
        if finished is not None:
            return finished
        own = set(self.store.missing(names[get_rank() :: get_world_size()]))
        barrier()
        indices = [index for index, name in enumerate(names) if name in own]
        if indices:
            self._load_weights(model, checkpoint, trusted)
            self._label(dataset, indices, names, model.to(get_device()).eval())
        barrier()
        return self._finish(names, ratio, meta['num_classes'])

    def summary(self, manifest: Dict[str, Any]) -> str:
        """One line about a finished store."""
        kept = manifest['kept_share']
        return (
            f'Pseudo-labels: {manifest["num_images"]} images by '
            f'{manifest["checkpoint"]["file"]}, ratio {manifest["ratio"]:g}, kept '
            f'{100 * kept:.1f} % of the pixels, mean confidence '
            f'{manifest["mean_confidence"]:.3f}, in {self.store.root}'
        )

    # ------------------------------------------------------------------ parts

    def _meta(self, checkpoint: str, ratio: float, num_classes: int) -> Dict[str, Any]:
        identity = _from_main(lambda: checkpoint_identity(checkpoint))
        return dict(
            checkpoint=identity,
            ratio=ratio,
            num_classes=num_classes,
            pixel_stride=self.pixel_stride,
            bins=self.bins,
        )

    def _open(self, names: List[str], meta: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        """Manifest if the store is finished for these images; otherwise open it for writing."""
        self.store.begin(meta)
        if self.store.is_complete and not self.store.missing(names):
            return self.store.manifest
        return None

    def _load_weights(
        self, model: torch.nn.Module, checkpoint: str, trusted: Sequence[str]
    ) -> None:
        content = load_checkpoint_file(checkpoint, trusted=trusted)
        model.load_state_dict(content.get('state_dict', content))

    @torch.no_grad()
    def _label(self, dataset, indices: List[int], names: List[str], model) -> None:
        loader = DataLoader(
            Subset(dataset, indices),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=pseudo_collate,
        )
        progress = _Progress(len(indices))
        for number, batch in enumerate(loader):
            data = model.data_preprocessor(batch, False)
            samples = model.predict(data['inputs'], data['data_samples'])
            first = number * self.batch_size
            for index, sample in zip(indices[first : first + self.batch_size], samples):
                self._put(names[index], sample)
            progress.step(len(samples))

    def _put(self, name: str, sample: SegDataSample) -> None:
        label, confidence = label_and_confidence(sample.seg_logits.data)
        self.store.put(name, label.cpu().numpy(), confidence.cpu().numpy())

    def _finish(self, names: List[str], ratio: float, num_classes: int) -> Dict[str, Any]:
        """Thresholds and statistics over all ranks; the first rank writes the manifest."""
        threshold = ClassBalancedThreshold(num_classes, self.pixel_stride, self.bins)
        own = names[get_rank() :: get_world_size()]
        for name in own:
            threshold.update(*self.store.get(name))
        for rank, other in enumerate(all_gather_object(threshold)):
            if rank != get_rank():
                threshold.merge(other)
        thresholds = threshold.compute(ratio)
        shares = all_gather_object(self.store.measure(own, thresholds))
        for share in shares[1:]:
            shares[0].merge(share)
        return _from_main(lambda: self.store.finish(names, thresholds, shares[0]))


class _Progress:
    """Logs the progress of a pass about ten times, with the time that is left."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.time()
        self.every = max(1, total // 10)

    def step(self, count: int) -> None:
        before, self.done = self.done, self.done + count
        if self.done // self.every > before // self.every and is_main_process():
            left = (time.time() - self.began) / self.done * (self.total - self.done)
            print_log(f'Labels [{self.done}/{self.total}], {left:.0f} s left', logger='current')


def _from_main(function) -> Any:
    """Result of a function that only the first rank runs."""
    result = [function() if is_main_process() else None]
    broadcast_object_list(result)
    return result[0]
