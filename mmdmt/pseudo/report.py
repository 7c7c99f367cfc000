"""What finished pseudo-labels are like, class by class, from their manifest."""

from typing import Any, Dict, Iterable, List, Sequence

from prettytable import PrettyTable

from mmdmt.registry import DATASETS

_TITLES = dict(share='share %', kept='kept %', confidence='mean confidence', threshold='threshold')
_FORMATS = dict(share='{:.2%}', kept='{:.1%}', confidence='{:.3f}', threshold='{:.4f}')


def class_names(datasets: Iterable[Dict[str, Any]], num_classes: int) -> List[str]:
    """Class names by the first dataset config, or its type, that has as many; else numbers."""
    for dataset in datasets:
        classes = (dataset.get('metainfo') or {}).get('classes')
        if not classes:
            kind = DATASETS.get(dataset['type'])
            classes = (getattr(kind, 'METAINFO', None) or {}).get('classes')
        if classes and len(classes) == num_classes:
            return list(classes)
    return [str(index) for index in range(num_classes)]


def class_rows(
    predicted: Sequence[int], kept: Sequence[int], **more: Sequence[float]
) -> List[Dict[str, float]]:
    """What the labels of each class are like.

    Args:
        predicted (Sequence[int]): (C,) pixels, or images, that each class was predicted for.
        kept (Sequence[int]): (C,) those of them that are trained on.
        **more (Sequence[float]): (C,) each: ``confidence``, ``threshold``.

    Returns:
        list[dict[str, float]]: Per class ``share`` of all that was predicted, ``kept`` share of
        its own, and ``more``. Shares are in [0, 1]; a class that was not predicted has zeros.
    """
    total = max(1, sum(predicted))
    rows = [dict(share=p / total, kept=k / max(1, p)) for p, k in zip(predicted, kept)]
    for name, values in more.items():
        for row, value in zip(rows, values):
            row[name] = value
    return rows


def class_table(rows: Sequence[Dict[str, float]], names: Sequence[str]) -> str:
    """A plain-text table of :func:`class_rows`, largest class first."""
    table = PrettyTable(['class', *(_TITLES[key] for key in rows[0])], align='r')
    table.align['class'] = 'l'
    for name, row in sorted(zip(names, rows), key=lambda pair: -pair[1]['share']):
        table.add_row([name, *(_FORMATS[key].format(row[key]).rstrip('%') for key in row)])
    return table.get_string()


def label_scalars(
    manifest: Dict[str, Any], rows: Sequence[Dict[str, float]], names: Sequence[str]
) -> Dict[str, float]:
    """The same for visualization backends, under names without ``loss``.

    They are ``pseudo_labels/kept_share``, ``pseudo_labels/mean_confidence``, and
    ``pseudo_labels/<share|kept|confidence>/<class>``.
    """
    scalars = {
        'pseudo_labels/kept_share': sum(row['share'] * row['kept'] for row in rows),
        'pseudo_labels/mean_confidence': float(manifest['mean_confidence']),
    }
    for name, row in zip(names, rows):
        keys = [key for key in row if key != 'threshold']
        scalars.update({f'pseudo_labels/{key}/{name}': row[key] for key in keys})
    return scalars
