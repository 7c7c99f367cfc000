"""Labels a folder of images with a trained segmentor and stores the result."""

import shutil
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import torch
from mmengine.dist import all_gather_object, get_rank
from torch import Tensor, nn

from mmdmt.checks import check_choice, check_count, check_range
from mmdmt.distributed import from_main
from mmdmt.pseudo.base_labeler import BaseLabeler, Predict, own_share
from mmdmt.pseudo.prediction import check_tta, predict_probabilities
from mmdmt.pseudo.report import class_rows
from mmdmt.pseudo.store import PseudoLabelStore
from mmdmt.pseudo.thresholds import (
    BALANCES,
    RULES,
    ClassBalancedThreshold,
    ratio_rule_thresholds,
    threshold_ratio_labels,
)
from mmdmt.registry import TASK_UTILS

#: Folder in the store of the rule 'threshold_ratio' while its thresholds are being found.
FIRST_PASS = 'first_pass'

#: Class and confidence (H, W) of class probabilities (C, H, W).
Choose = Callable[[Tensor], Tuple[Tensor, Tensor]]


def most_probable(prob: Tensor) -> Tuple[Tensor, Tensor]:
    """Most probable class (H, W) and its probability (H, W) of (C, H, W) probabilities."""
    confidence, label = prob.max(dim=0)
    return label, confidence


@TASK_UTILS.register_module()
class PseudoLabeler(BaseLabeler):
    """One forward per image: class and confidence into a store, thresholds from the same pass.

    The images are split over the ranks; those in the store already are not labeled again.
    Thresholds are computed from the stored (quantized) values, so that an interrupted pass that
    was continued ends with the manifest of an uninterrupted one, on any number of ranks.

    The rule ``'threshold_ratio'`` needs the thresholds before it can choose a class, and the
    probabilities of all classes, which are too large to keep: it takes a second forward. The
    first pass is kept in ``<store>/first_pass`` until the second is finished.

    Args:
        store (str): Folder of the :class:`~mmdmt.pseudo.PseudoLabelStore`.
        model, dataset, num_workers: See :class:`BaseLabeler`.
        labels_before (str, optional): Finished store, whose maps are taken over: only images that
            are not in it are labeled.
        batch_size (int): Images per forward. Images of different sizes are predicted one by one.
        pixel_stride (int): Thresholds use every n-th pixel.
        bins (int, optional): Bins of a constant-memory histogram; exact ranks by default.
        rule (str): ``'argmax'`` (DMT), or ``'threshold_ratio'`` (CRST, DST-CBC), see
            :func:`~mmdmt.pseudo.thresholds.threshold_ratio_labels`.
        balance (str): ``'class'`` keeps a share of the pixels of each class, ``'global'`` of all
            together.
        threshold (float, optional): One confidence that all pixels need, instead of a share.
        amp (bool): Whether to predict in half precision (bfloat16 on a CPU).
        tta (dict, optional): ``flip`` (bool) and ``scales`` (list of factors), over which
            probabilities are averaged; one forward for each.
    """

    def __init__(
        self,
        store: str,
        model: dict,
        dataset: dict,
        labels_before: Optional[str] = None,
        *,
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
        super().__init__(model, dataset, batch_size, num_workers)
        check_count('labeling.pixel_stride', pixel_stride, 1)
        if bins is not None:
            check_count('labeling.bins', bins, 2)
        check_choice('labeling.rule', rule, RULES)
        check_choice('labeling.balance', balance, BALANCES)
        check_tta(tta, 'labeling.tta')
        check_range('labeling.threshold', threshold or 0, 0, 1)
        if threshold is not None and (rule != 'argmax' or balance != 'class'):
            raise ValueError(
                f'a fixed `labeling.threshold` ({threshold}) leaves nothing to balance: remove '
                f'rule={rule!r} and balance={balance!r}, or the threshold'
            )
        self.store = PseudoLabelStore(store)
        self.labels_before = PseudoLabelStore(labels_before) if labels_before else None
        self.pixel_stride, self.bins = pixel_stride, bins
        self.rule, self.balance, self.threshold = rule, balance, threshold
        self.amp, self.tta = amp, tta

    def settings(self, model: nn.Module, names: List[str]) -> Dict[str, Any]:
        """What decides labels and thresholds."""
        keys = ('pixel_stride', 'bins', 'rule', 'balance', 'threshold', 'amp', 'tta')
        settings = dict({key: getattr(self, key) for key in keys}, num_classes=model.num_classes)
        if self.labels_before:
            settings['labels_before'] = self.labels_before.manifest['checkpoint']
        return settings

    def predict_batch(self, model: nn.Module, batch: Dict[str, list]) -> List[Tensor]:
        """Class probabilities (C, H, W) of each image, 0 where nothing was measured."""
        return predict_probabilities(model, batch, self.amp, self.tta)

    def label(self, names: List[str], meta: Dict[str, Any], predict: Predict) -> Dict[str, Any]:
        """Label what is missing in the store and finish it; see :meth:`BaseLabeler.label`."""
        if self.rule == 'argmax':
            return self._pass(self.store, names, meta, predict, most_probable)
        # These maps depend on the thresholds: another ratio needs other maps.
        keys = ('ratio', 'balance', 'pixel_stride', 'bins')
        rule = dict(name=self.rule, **{key: meta[key] for key in keys})
        own_meta, first_meta = dict(meta, rule=rule), dict(meta, rule='argmax')
        finished = self._finished(self.store, names, own_meta)
        if finished is not None:
            return finished
        first = PseudoLabelStore(self.store.root / FIRST_PASS)
        manifest = self._pass(first, names, first_meta, predict, most_probable)
        limits = ratio_rule_thresholds(torch.tensor(manifest['thresholds']), meta['ratio'])

        def choose(prob: Tensor) -> Tuple[Tensor, Tensor]:
            return threshold_ratio_labels(prob, limits)

        manifest = self._pass(self.store, names, own_meta, predict, choose, limits)
        from_main(lambda: shutil.rmtree(first.root, ignore_errors=True))
        return manifest

    def summary(self, manifest: Dict[str, Any]) -> str:
        """One line about a finished store."""
        return (
            f'Pseudo-labels: {manifest["num_images"]} images by '
            f'{manifest["checkpoint"]["file"]}, {self._selection(manifest["ratio"])}, kept '
            f'{100 * manifest["kept_share"]:.1f} % of the pixels, mean confidence '
            f'{manifest["mean_confidence"]:.3f}, in {self.store.root}'
        )

    def class_rows(self, manifest: Dict[str, Any]) -> List[Dict[str, float]]:
        """What the labels of each class are like."""
        return class_rows(
            manifest['predicted_pixels'],
            manifest['kept_pixels'],
            confidence=manifest['class_confidence'],
            threshold=manifest['thresholds'],
        )

    def _selection(self, ratio: float) -> str:
        if self.threshold is not None:
            return f'threshold {self.threshold:g}'
        of = '' if self.balance == 'class' else ' of all classes together'
        return f'ratio {ratio:g}{of}' + ('' if self.rule == 'argmax' else f' by {self.rule}')

    def _finished(
        self, store: PseudoLabelStore, names: List[str], meta: Dict[str, Any]
    ) -> Optional[Dict[str, Any]]:
        """Manifest if the store is finished for these images; otherwise it is open for writing."""

        def begin() -> Optional[Dict[str, Any]]:
            store.begin(meta)
            return store.manifest if store.is_complete else None

        manifest = from_main(begin)
        if manifest is None or manifest['files'] != names:
            return None
        # Gathering also keeps ranks from writing before all have looked.
        lost = sum(all_gather_object(len(store.missing(own_share(names)))))
        return None if lost else manifest

    def _pass(
        self,
        store: PseudoLabelStore,
        names: List[str],
        meta: Dict[str, Any],
        predict: Predict,
        choose: Choose,
        thresholds: Optional[Tensor] = None,
    ) -> Dict[str, Any]:
        """Label what is missing, unless nothing is; thresholds come from the labels by default."""
        finished = self._finished(store, names, meta)
        if finished is not None:
            return finished
        missing = self._take_over(store, set(store.missing(own_share(names))))
        for index, prob in predict([i for i, name in enumerate(names) if name in missing]):
            label, confidence = choose(prob)
            label = label.masked_fill(prob.amax(dim=0) <= 0, 255)  # not measured
            store.put(names[index], label.to(torch.uint8).cpu().numpy(), confidence.cpu().numpy())
        if thresholds is None:
            thresholds = self._thresholds(store, own_share(names), meta)
        counts = sum(all_gather_object(store.measure(own_share(names), thresholds)))
        return from_main(lambda: store.finish(names, thresholds, counts))

    def _take_over(self, store: PseudoLabelStore, missing: Set[str]) -> Set[str]:
        """Copy the maps of images that are labeled already; the other images."""
        if self.labels_before is None:
            return missing
        known = missing & set(self.labels_before.manifest['files'])
        for name in sorted(known):
            store.put(name, *self.labels_before.get(name))
        return missing - known

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
