"""Stored pseudo-labels of a chain: what they are like round by round, and some to look at."""

from collections.abc import Sequence
from typing import Any, Dict, List, Optional, Tuple

from mmengine.registry import DefaultScope

from mmdmt.evaluation.label_source import LabelSource
from mmdmt.evaluation.pseudo_label_quality import PseudoLabelQuality
from mmdmt.evaluation.report.predictions import Picture, add_maps, spread
from mmdmt.evaluation.report.runs import Run, StageInfo, first_line
from mmdmt.pseudo import PseudoLabelStore, apply_thresholds
from mmdmt.pseudo.codec import PseudoLabelError

#: Rounds whose labels the browser shows: the first, the last, and one between.
SHOWN_ROUNDS = 3


class StoredLabels:
    """The finished pseudo-labels of a chain.

    Args:
        run: The chain; what is missing is added to its notes.
        count: Images, evenly spaced in the list, that are compared with their truth. All count for
            shares, which the manifests hold.
    """

    def __init__(self, run: Run, count: int = 500) -> None:
        self.run = run
        self.source = None if run.is_classification else label_source(run)
        self.stores: List[Tuple[StageInfo, PseudoLabelStore, dict]] = []
        for stage in () if run.is_classification else run.stages:
            store = PseudoLabelStore(stage.folder / 'pseudo_labels')
            try:
                if stage.round and stage.is_done:
                    self.stores.append((stage, store, store.manifest))
            except (PseudoLabelError, KeyError) as error:
                run.notes.append(f'No pseudo-labels of {stage.name}: {first_line(error)}.')
        names = self.stores[0][2]['files'] if self.stores else []
        self.names = spread(sorted(names), count)

    def rounds(self) -> List[Dict[str, Any]]:
        """A dict for each stage: ``round``, ``member``, counts and shares of its labels.

        ``classes`` has for each class ``share`` of all labels, ``kept`` share of its own,
        ``threshold``, and from the truth ``true`` share and ``precision`` of what is kept.
        """
        return [self._round(*entry) for entry in self.stores]

    def _round(self, stage: StageInfo, store: PseudoLabelStore, manifest: dict) -> Dict[str, Any]:
        quality = PseudoLabelQuality(manifest['num_classes'])
        for name in self.names:
            found = self._read(store, manifest, name)
            if found is not None:
                quality.update(*found)
        result, total = quality.compute(), max(1, sum(manifest['predicted_pixels']))
        classes = [
            dict(
                share=predicted / total,
                kept=kept / predicted if predicted else None,
                threshold=threshold,
                true=own['true_share'],
                precision=own['precision_kept'],
            )
            for predicted, kept, threshold, own in zip(
                manifest['predicted_pixels'],
                manifest['kept_pixels'],
                manifest['thresholds'],
                result['classes'],
            )
        ]
        keys = ('accuracy', 'accuracy_kept', 'miou', 'miou_kept', 'ece', 'num_true_pixels')
        return dict(
            {key: result[key] for key in keys},
            round=stage.round,
            member=stage.member,
            name=stage.name,
            ratio=manifest.get('ratio'),
            kept=manifest['kept_share'],
            confidence=manifest['mean_confidence'],
            images=manifest['num_images'],
            counted=result['num_images'],
            classes=classes,
        )

    def _read(self, store: PseudoLabelStore, manifest: dict, name: str) -> Optional[tuple]:
        """Label, confidence, kept and truth of an image; None if its map cannot be read."""
        try:
            label, confidence = store.get(name)
        except PseudoLabelError as error:
            self.run.notes.append(f'A pseudo-label cannot be read: {first_line(error)}.')
            return None
        kept = apply_thresholds(label, confidence, manifest['thresholds']) != 255
        truth = self.source.truth(name, label.shape) if self.source else None
        return label, confidence, kept, truth

    def errors(self) -> Dict[str, float]:
        """Of the images that are compared, the error of the last labels; without truth, doubt."""
        stage_errors = {}
        for name in self.names if self.stores else ():
            found = self._read(*self.stores[-1][1:], name)
            if found is None:
                continue
            label, confidence, _, truth = found
            known = None if truth is None else truth != 255
            doubt = known is None or not known.any()
            stage_errors[name] = float(
                1 - confidence.mean() if doubt else (label != truth)[known].mean()
            )
        return stage_errors

    def add_pictures(self, pictures: Dict[str, Picture], names: Sequence[str]) -> List[str]:
        """Add columns of maps to pictures by name; those below the thresholds have no label.

        Returns:
            list[str]: The columns.
        """
        rounds = spread(sorted({stage.round for stage, _, _ in self.stores}), SHOWN_ROUNDS)
        columns = []
        for stage, store, manifest in self.stores:
            if stage.round not in rounds:
                continue
            column = f'{self.run.name}: round {stage.round}, for {stage.member}'
            columns.append(column)
            for name in names:
                found = self._read(store, manifest, name)
                if found is not None:
                    label, confidence, kept, truth = found
                    label = label.copy()
                    label[~kept] = 255
                    maps = dict(label=label, confidence=confidence, truth=truth)
                    image = None if name in pictures else self._image(name)
                    add_maps(pictures, column, dict(maps, path=name, name=name, image=image))
        return columns

    def _image(self, name: str) -> Any:
        return self.source.image(name) if self.source and name in self.source.image_paths else None


def label_source(run: Run) -> Optional[LabelSource]:
    """Unlabeled images of a run with their truth where it exists; None, and a note, without."""
    stages = [stage.cfg for stage in run.stages if stage.cfg is not None and stage.round]
    cfg = stages[0] if stages else run.cfg
    sources = (cfg or {}).get('train_dataloader', {}).get('dataset', {}).get('datasets', [])
    if len(sources) != 2:
        return None
    try:
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmseg')):
            return LabelSource(cfg)
    except Exception as error:  # data that is not there any more, in many ways
        run.notes.append(f'The unlabeled images cannot be read: {first_line(error)}.')
        return None
