"""Lists of labeled and unlabeled images for classification, with equally many of each class."""

import random
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from mmdmt.datasets.splits.draws import Split

VALIDATION_SEED = 1


class ClassSplits(NamedTuple):
    """Validation ids, the same for all seeds; lists by (labeled images in all, seed)."""

    val: list[str]
    splits: dict[tuple[int, int], Split]


def per_class_splits(
    labels: Mapping[str, int],
    per_class: Sequence[int] = (4, 25, 100, 400),
    seeds: Iterable[int] = (1, 2, 3, 4, 5),
    val_per_class: int = 20,
) -> ClassSplits:
    """Draw nested lists with equally many labeled images of each class.

    The procedure published with DMT for CIFAR-10: the images of each class, in the order of their
    names, are shuffled with one random stream a seed. The last 20 of the draw with seed 1 are the
    validation images, and labeled are the first 4, 25, 100 or 400 of the others. The published
    lists themselves were not available for comparison.

    Args:
        labels (Mapping[str, int]): Class of each image by name.
        per_class (Sequence[int]): Labeled images of each class, one number a set.
        seeds (Iterable[int]): One draw for each.
        val_per_class (int): Validation images of each class; 0 for none.

    Raises:
        ValueError: If there are no images, or a class has too few.
    """
    _check_sizes(labels, per_class, val_per_class)
    val: set[str] = set()
    if val_per_class:
        for names in _shuffled(labels, VALIDATION_SEED):
            val.update(names[-val_per_class:])
    splits = {}
    for seed in seeds:
        drawn = [[name for name in names if name not in val] for names in _shuffled(labels, seed)]
        for count in per_class:
            labeled = [name for names in drawn for name in names[:count]]
            unlabeled = [name for names in drawn for name in names[count:]]
            splits[len(labeled), seed] = (labeled, unlabeled)
    return ClassSplits(sorted(val), splits)


def _check_sizes(labels: Mapping[str, int], per_class: Sequence[int], val_per_class: int) -> None:
    if not labels:
        raise ValueError('there are no images to split: the dataset or folder is empty')
    if not per_class or min(per_class) < 1 or val_per_class < 0:
        raise ValueError(
            f'at least one labeled image of each class is needed, got {list(per_class)} and '
            f'{val_per_class} for validation'
        )
    least = min(map(len, _by_class(labels)))
    if max(per_class) + val_per_class > least:
        raise ValueError(
            f'a class has {least} images, but {max(per_class)} labeled and {val_per_class} '
            'validation images of each class are wanted'
        )


def _by_class(labels: Mapping[str, int]) -> list[list[str]]:
    """Sorted names of each class, in the order of the classes."""
    names: dict[int, list[str]] = {label: [] for label in sorted(set(labels.values()))}
    for name in sorted(labels):
        names[labels[name]].append(name)
    return list(names.values())


def _shuffled(labels: Mapping[str, int], seed: int) -> list[list[str]]:
    """The names of each class in random order, from one stream."""
    rng = random.Random(seed)
    drawn = _by_class(labels)
    for names in drawn:
        rng.shuffle(names)
    return drawn
