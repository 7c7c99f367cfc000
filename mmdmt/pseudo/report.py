"""What finished pseudo-labels are like, class by class, from the manifest of their store."""

from typing import Any, Dict, Iterable, List

from mmdmt.registry import DATASETS

_HEAD = ('class', 'share %', 'kept %', 'confidence', 'threshold')


def class_names(datasets: Iterable[Dict[str, Any]], num_classes: int) -> List[str]:
    """Class names by the first data set config that has them; their numbers if none has.

    Args:
        datasets (Iterable[dict]): Configs with ``metainfo``, or of types that have class names.
        num_classes (int): Number of classes of the labels.
    """
    for dataset in datasets:
        classes = (dataset.get('metainfo') or {}).get('classes')
        if not classes:
            kind = DATASETS.get(dataset['type'])
            classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
        if classes and len(classes) == num_classes:
            return list(classes)
    return [str(index) for index in range(num_classes)]


def class_rows(manifest: Dict[str, Any]) -> List[Dict[str, float]]:
    """Per class: ``share`` of all labeled pixels, ``kept`` share of its own, ``confidence``.

    Args:
        manifest (dict): Of :class:`~mmdmt.pseudo.PseudoLabelStore`.

    Returns:
        list[dict[str, float]]: Shares in [0, 1]; a class that was not predicted has zeros.
    """
    total = max(1, manifest['num_pixels'])
    columns = (manifest[key] for key in ('predicted_pixels', 'kept_pixels', 'class_confidence'))
    return [
        dict(share=predicted / total, kept=kept / max(1, predicted), confidence=confidence)
        for predicted, kept, confidence in zip(*columns)
    ]


def class_table(manifest: Dict[str, Any], names: List[str]) -> str:
    """A plain-text table of :func:`class_rows` with the thresholds, largest class first."""
    if 'class_confidence' not in manifest:
        return '(labeled before statistics per class were kept)'
    rows = list(zip(names, class_rows(manifest), manifest['thresholds']))
    rows.sort(key=lambda row: -row[1]['share'])
    width = max(len(name) for name in (*names, 'class'))
    lines = [f'{_HEAD[0]:<{width}}' + ''.join(f'  {title:>10}' for title in _HEAD[1:])]
    for name, row, threshold in rows:
        values = (f'{100 * row["share"]:.2f}', f'{100 * row["kept"]:.1f}')
        values += (f'{row["confidence"]:.3f}', f'{threshold:.4f}')
        lines.append(f'{name:<{width}}' + ''.join(f'  {value:>10}' for value in values))
    return '\n'.join(lines)


def label_scalars(manifest: Dict[str, Any], names: List[str]) -> Dict[str, float]:
    """The same for visualization backends, under names without ``loss``.

    Returns:
        dict[str, float]: ``pseudo_labels/kept_share``, ``pseudo_labels/mean_confidence``, and
        ``pseudo_labels/<share|kept|confidence>/<class>``.
    """
    scalars = {
        f'pseudo_labels/{key}': float(manifest[key]) for key in ('kept_share', 'mean_confidence')
    }
    if 'class_confidence' in manifest:
        for name, row in zip(names, class_rows(manifest)):
            scalars.update({f'pseudo_labels/{key}/{name}': row[key] for key in row})
    return scalars
