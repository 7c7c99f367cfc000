"""Labels a folder of images with a trained segmentor and stores the result."""

import hashlib
import os.path as osp
import shutil
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from mmengine.device import get_device
from mmengine.dist import (
    all_gather_object,
    barrier,
    get_rank,
    get_world_size,
    is_main_process,
)
from mmengine.logging import print_log
from torch import Tensor

from mmdmt.checkpoint import load_checkpoint_file
from mmdmt.distributed import from_main
from mmdmt.models.methods.base import build_segmentor
from mmdmt.pseudo.loading import image_loader
from mmdmt.pseudo.prediction import check_tta, predict_probabilities
from mmdmt.pseudo.store import PseudoLabelStore
from mmdmt.pseudo.thresholds import (
    BALANCES,
    RULES,
    ClassBalancedThreshold,
    ratio_rule_thresholds,
    threshold_ratio_labels,
)
from mmdmt.registry import DATASETS

#: Folder in the store of the rule 'threshold_ratio' while its thresholds are being found.
FIRST_PASS = 'first_pass'


def checkpoint_identity(path: str) -> Dict[str, Any]:
    """What tells one checkpoint from another: file name, size and SHA-256 of the content."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        for block in iter(lambda: file.read(1 << 20), b''):
            digest.update(block)
    return dict(file=osp.basename(path), bytes=osp.getsize(path), sha256=digest.hexdigest())


def most_probable(prob: Tensor) -> Tuple[Tensor, Tensor]:
    """Most probable class (H, W) and its probability (H, W) of (C, H, W) probabilities."""
    confidence, label = prob.max(dim=0)
    return label, confidence


class PseudoLabeler:
    """One forward per image: class and confidence into a store, thresholds from the same pass.

    The images are split over the ranks; images that are in the store already are not labeled
    again. Thresholds are computed from the stored (quantized) values, so that an interrupted pass
    that was continued ends with exactly the manifest of an uninterrupted one, on any number of
    ranks.

    The rule ``'threshold_ratio'`` needs the thresholds before it can choose a class, and the
    probabilities of all classes, which are too large to keep: it takes a second forward. The
    first pass is kept in ``<store_dir>/first_pass`` until the second is finished.

    Args:
        store_dir (str): Folder of the store.
        model (dict): Config of an ordinary mmseg segmentor.
        dataset (dict): Config of the images with a test pipeline; its data infos have ``name``.
        batch_size (int): Images per forward. Images of different sizes are predicted one by one.
            Defaults to 1.
        num_workers (int): Loader workers. Defaults to 2.
        pixel_stride (int): Thresholds use every n-th pixel. Defaults to 16.
        bins (int, optional): Bins of a constant-memory histogram; exact ranks by default.
        rule (str): ``'argmax'`` (DMT), or ``'threshold_ratio'`` (CRST, DST-CBC), see
            :func:`~mmdmt.pseudo.apply_threshold_ratio`. Defaults to ``'argmax'``.
        balance (str): ``'class'`` keeps a share of the pixels of each class, ``'global'`` of all
            together. Defaults to ``'class'``.
        threshold (float, optional): One confidence that all pixels need, instead of a share.
        amp (bool): Whether to predict in half precision (bfloat16 on a CPU). Defaults to False.
        tta (dict, optional): ``flip`` (bool) and ``scales`` (list of factors), over which
            probabilities are averaged; one forward for each. Defaults to none.

    Raises:
        ValueError: If a setting is unknown, or two contradict each other.
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
        rule: str = 'argmax',
        balance: str = 'class',
        threshold: Optional[float] = None,
        amp: bool = False,
        tta: Optional[dict] = None,
    ) -> None:
        check_selection(rule, balance, threshold)
        check_tta(tta)
        self.store = PseudoLabelStore(store_dir)
        self.model_cfg = model
        self.dataset_cfg = dataset
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pixel_stride = pixel_stride
        self.bins = bins
        self.rule = rule
        self.balance = balance
        self.threshold = threshold
        self.amp = amp
        self.tta = tta

    def run(self, checkpoint: str, ratio: float, trusted: Sequence[str] = ()) -> Dict[str, Any]:
        """Label all images that are not labeled yet and finish the store.

        Args:
            checkpoint (str): Weights of the network that labels.
            ratio (float): Share of pixels kept, in (0, 1]. Not used with ``threshold``.
            trusted (Sequence[str]): Checkpoints that may hold more than tensors.

        Returns:
            dict: The manifest of the finished store.

        Raises:
            UnreadableImageError: If an image cannot be loaded. What was labeled before it stays.
        """
        dataset = DATASETS.build(self.dataset_cfg)
        names = [dataset.get_data_info(index)['name'] for index in range(len(dataset))]
        model = build_segmentor(self.model_cfg)
        meta = self._meta(checkpoint, ratio, model.num_classes)
        finished = from_main(lambda: self._open(self.store, names, meta))
        if finished is not None:
            return finished
        network = _Network(model, checkpoint, trusted)
        if self.rule == 'argmax':
            return self._pass(self.store, dataset, names, network, meta, most_probable)
        return self._second_pass(dataset, names, network, meta)

    def summary(self, manifest: Dict[str, Any]) -> str:
        """One line about a finished store."""
        kept = manifest['kept_share']
        return (
            f'Pseudo-labels: {manifest["num_images"]} images by '
            f'{manifest["checkpoint"]["file"]}, {self._selection(manifest["ratio"])}, kept '
            f'{100 * kept:.1f} % of the pixels, mean confidence '
            f'{manifest["mean_confidence"]:.3f}, in {self.store.root}'
        )

    def _selection(self, ratio: float) -> str:
        if self.threshold is not None:
            return f'threshold {self.threshold:g}'
        of = '' if self.balance == 'class' else ' of all classes together'
        return f'ratio {ratio:g}{of}' + ('' if self.rule == 'argmax' else f' by {self.rule}')

    # ------------------------------------------------------------------ parts

    def _meta(self, checkpoint: str, ratio: float, num_classes: int) -> Dict[str, Any]:
        meta = dict(
            checkpoint=from_main(lambda: checkpoint_identity(checkpoint)),
            ratio=ratio,
            num_classes=num_classes,
            pixel_stride=self.pixel_stride,
            bins=self.bins,
        )
        # Only what was asked for, so that stores made before a setting existed stay valid.
        defaults = dict(rule='argmax', balance='class', threshold=None, amp=False, tta=None)
        for key, default in defaults.items():
            if getattr(self, key) != default:
                meta[key] = getattr(self, key)
        if self.rule != 'argmax':
            # These maps depend on the thresholds: another ratio needs other maps.
            meta['rule'] = dict(
                name=self.rule,
                ratio=ratio,
                balance=self.balance,
                pixel_stride=self.pixel_stride,
                bins=self.bins,
            )
        return meta

    def _open(
        self, store: PseudoLabelStore, names: List[str], meta: Dict[str, Any]
    ) -> Optional[Dict[str, Any]]:
        """Manifest if the store is finished for these images; otherwise open it for writing.

        Maps of a finished store that are not what its manifest says are removed here, before the
        manifest goes with the first one that is labeled again.
        """
        store.begin(meta)
        if not store.is_complete:
            return None
        lost = store.missing(names)
        if not lost and store.manifest['files'].keys() == set(names):
            return store.manifest
        store.discard(lost)
        return None

    def _second_pass(
        self, dataset: Any, names: List[str], network: '_Network', meta: Dict[str, Any]
    ) -> Dict[str, Any]:
        """Find the thresholds with an ordinary pass, then label by probability over threshold."""
        first = PseudoLabelStore(self.store.root / FIRST_PASS)
        first_meta = {key: value for key, value in meta.items() if key != 'rule'}
        manifest = from_main(lambda: self._open(first, names, first_meta))
        if manifest is None:
            manifest = self._pass(first, dataset, names, network, first_meta, most_probable)
        limits = ratio_rule_thresholds(torch.tensor(manifest['thresholds']), meta['ratio'])

        def choose(prob: Tensor) -> Tuple[Tensor, Tensor]:
            return threshold_ratio_labels(prob, limits)

        result = self._pass(self.store, dataset, names, network, meta, choose, limits)
        from_main(lambda: shutil.rmtree(first.root, ignore_errors=True))
        return result

    def _pass(
        self,
        store: PseudoLabelStore,
        dataset: Any,
        names: List[str],
        network: '_Network',
        meta: Dict[str, Any],
        choose: Callable,
        thresholds: Optional[Tensor] = None,
    ) -> Dict[str, Any]:
        """Label what is missing in an opened store, and finish it."""
        own = set(store.missing(names[get_rank() :: get_world_size()]))
        barrier()
        indices = [index for index, name in enumerate(names) if name in own]
        if indices:
            self._label(store, dataset, indices, names, network.get(), choose)
        barrier()
        return self._finish(store, names, meta, thresholds)

    @torch.no_grad()
    def _label(
        self,
        store: PseudoLabelStore,
        dataset: Any,
        indices: List[int],
        names: List[str],
        model: torch.nn.Module,
        choose: Callable,
    ) -> None:
        loader = image_loader(dataset, indices, self.batch_size, self.num_workers)
        progress = _Progress(len(indices))
        for number, batch in enumerate(loader):
            probs = predict_probabilities(model, batch, self.amp, self.tta)
            first = number * self.batch_size
            for index, prob in zip(indices[first : first + self.batch_size], probs):
                self._put(store, names[index], *choose(prob))
            progress.step(len(probs))

    def _put(self, store: PseudoLabelStore, name: str, label: Tensor, confidence: Tensor) -> None:
        store.put(name, label.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())

    def _finish(
        self,
        store: PseudoLabelStore,
        names: List[str],
        meta: Dict[str, Any],
        thresholds: Optional[Tensor],
    ) -> Dict[str, Any]:
        """Thresholds and statistics over all ranks; the first rank writes the manifest."""
        own = names[get_rank() :: get_world_size()]
        if thresholds is None:
            thresholds = self._thresholds(store, own, meta)
        shares = all_gather_object(store.measure(own, thresholds))
        for share in shares[1:]:
            shares[0].merge(share)
        return from_main(lambda: store.finish(names, thresholds, shares[0]))

    def _thresholds(self, store: PseudoLabelStore, own: List[str], meta: Dict[str, Any]) -> Tensor:
        """(C,) thresholds from the maps of all ranks."""
        if self.threshold is not None:
            return torch.full((meta['num_classes'],), float(self.threshold))
        counter = ClassBalancedThreshold(meta['num_classes'], self.pixel_stride, self.bins)
        for name in own:
            counter.update(*store.get(name))
        for rank, other in enumerate(all_gather_object(counter)):
            if rank != get_rank():
                counter.merge(other)
        return counter.compute(meta['ratio'], self.balance)


def check_selection(rule: str, balance: str, threshold: Optional[float]) -> None:
    """Refuse unknown rules of selection and those that contradict each other.

    Raises:
        ValueError: Naming the setting and what is known.
    """
    for name, value, known in (('rule', rule, RULES), ('balance', balance, BALANCES)):
        if value not in known:
            raise ValueError(f'`{name}` of the labeling must be one of {known}, got {value!r}')
    if threshold is None:
        return
    if not 0 <= threshold <= 1:
        raise ValueError(f'`threshold` of the labeling must be in [0, 1], got {threshold}')
    if rule != 'argmax' or balance != 'class':
        raise ValueError(
            f'a fixed `threshold` ({threshold}) of the labeling leaves nothing to balance: remove '
            f'rule={rule!r} and balance={balance!r}, or the threshold'
        )


class _Network:
    """The network that labels; weights are read only if there is something to label."""

    def __init__(self, model: torch.nn.Module, checkpoint: str, trusted: Sequence[str]) -> None:
        self.model = model
        self.checkpoint = checkpoint
        self.trusted = trusted
        self._ready = False

    def get(self) -> torch.nn.Module:
        if not self._ready:
            content = load_checkpoint_file(self.checkpoint, trusted=self.trusted)
            self.model.load_state_dict(content.get('state_dict', content))
            self.model.to(get_device()).eval()
            self._ready = True
        return self.model


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
