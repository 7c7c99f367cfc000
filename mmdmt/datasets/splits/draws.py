"""Drawing labeled and unlabeled ids: the published procedure, sizes of your own, class-aware.

There is one draw: sort the ids, seed one private ``random.Random``, shuffle cumulatively once per
fold, and take prefixes. Hence larger labeled sets of a fold contain the smaller ones, and the same
seed gives the same lists whichever way their size was named.
"""

import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Optional, Union

from mmdmt.checks import check_range

Split = tuple[list[str], list[str]]
"""Two lists of ids: (labeled, unlabeled), or (left, right)."""

Splits = dict[tuple[Hashable, int], Split]
"""Lists by (size as the caller named it, fold), fold by fold, sizes in the caller's order."""

PUBLISHED_SEED = 7777


def nested_splits(
    names: Iterable[str], denominators: Sequence[float], folds: int = 3, seed: int = PUBLISHED_SEED
) -> Splits:
    """Draw nested labeled/unlabeled lists exactly as DMT and DST-CBC published theirs.

    Source: ``segmentation/generate_splits.py`` of the DST-CBC/DMT code (arXiv 2004.08514). With
    the sorted ids of ``trainaug`` (10582) and divisor 105.82, or Cityscapes ``train`` (2975) and
    29.75, the labeled lists have 100 ids and are those of the published files.

    Args:
        names (Iterable[str]): All ids. Their order does not matter: they are sorted first.
        denominators (Sequence[float]): 8 labels one eighth. May be fractional; 1 labels all.
        folds (int): Number of draws. Defaults to 3.
        seed (int): Seed of the shuffles. Defaults to 7777, the published one.

    Returns:
        dict: ``{(denominator, fold): (labeled, unlabeled)}``, both lists in drawn order.

    Raises:
        ValueError: On no ids, an id given twice, or a denominator that leaves no labeled image.
    """
    names = list(names)
    sizes = {denominator: published_size(len(names), denominator) for denominator in denominators}
    return draw_splits(names, sizes, folds, seed)


def draw_splits(
    names: Iterable[str],
    sizes: Mapping[Hashable, int],
    folds: int = 1,
    seed: int = PUBLISHED_SEED,
    presence: Optional[Mapping[str, Iterable[int]]] = None,
) -> Splits:
    """Draw nested lists with the given numbers of labeled images.

    Args:
        names (Iterable[str]): All ids, in any order.
        sizes (Mapping[Hashable, int]): Number of labeled images of each set.
        folds (int): Number of draws. Defaults to 1.
        seed (int): Seed of the shuffles. Defaults to 7777.
        presence (Mapping[str, Iterable[int]], optional): For each id the classes its mask shows.
            With it, each fold is reordered by :func:`cover_classes_first`, so that every set at
            least as large as that cover shows every class that occurs at all.

    Returns:
        dict: ``{(key of sizes, fold): (labeled, unlabeled)}``, both lists in drawn order.

    Raises:
        ValueError: On no ids, an id given twice, or a size below 1 or above the number of ids.
    """
    order = sorted(names)
    _check_draw(order, sizes.values(), folds)
    rng = random.Random(seed)
    splits = {}
    for fold in range(folds):
        rng.shuffle(order)  # in place: the next fold shuffles this fold's order, as published
        ids = order if presence is None else cover_classes_first(order, presence)
        for key, size in sizes.items():
            splits[key, fold] = (ids[:size], ids[size:])
    return splits


def _check_draw(ids: Sequence[str], sizes: Iterable[int], folds: int) -> None:
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if not ids:
        raise ValueError('there are no ids to split: the list or folder is empty')
    if twice:
        raise ValueError(f'{len(twice)} ids are given more than once, the first is {twice[0]!r}')
    if folds < 1:
        raise ValueError(f'folds={folds}: at least one draw is needed')
    for size in sizes:
        if not isinstance(size, int) or not 1 <= size <= len(ids):
            raise ValueError(
                f'count {size} is not a whole number from 1 to {len(ids)}, all there are'
            )


def published_size(total: int, denominator: float) -> int:
    """Number of labeled images among ``total`` for a published denominator.

    One image is added where a pass with batches of 8 would end in a batch of one, on which batch
    normalization fails.

    Raises:
        ValueError: If the denominator is below 1 or leaves no labeled image.
    """
    if denominator < 1:
        raise ValueError(
            f'denominator {denominator} is below 1: 8 labels one eighth of the images; '
            'for a share such as 0.125 use fractions'
        )
    size = int(total / denominator)
    if total and size == 0:
        raise ValueError(f'denominator {denominator} leaves no labeled image of {total}')
    return min(size + (size % 8 == 1), total)


def difference_maximized_subsets(
    names: Sequence[str], common: float = 0.6, rng: Optional[Union[random.Random, int]] = None
) -> Split:
    """Draw two equally large subsets that share only a given part of the ids.

    Source: ``dms_sample.py`` of the DMT code, "difference maximized sampling": two members trained
    on different labels disagree, which is what mutual training lives on. With ``common=0.6`` each
    subset holds 80% of the ids. ``names`` itself is left as it is.

    Args:
        names (Sequence[str]): Labeled ids, in drawn order.
        common (float): Share of the ids that is in both subsets, in [0, 1]. Defaults to 0.6.
        rng (random.Random | int, optional): Stream to draw from (it advances by one shuffle), or
            a seed. Defaults to a fresh stream with the published seed 7777.

    Returns:
        tuple[list[str], list[str]]: ``left`` and ``right``, in drawn order.

    Raises:
        ValueError: If ``common`` is outside [0, 1].
    """
    check_range('common', common, 0, 1)
    if not isinstance(rng, random.Random):
        rng = random.Random(PUBLISHED_SEED if rng is None else rng)
    order = list(names)
    rng.shuffle(order)
    only_one = math.ceil((1 - common) / 2 * len(order))
    return order[: len(order) - only_one], order[only_one:]


def cover_classes_first(names: Sequence[str], presence: Mapping[str, Iterable[int]]) -> list[str]:
    """Move to the front a small set of ids that together show every class.

    Greedy: take the rarest class not yet shown, and of its images the one that shows most missing
    classes (the earliest of equals). What the choice made redundant is put back, and what is left
    is ordered so that every prefix shows as much as it can.

    Returns the same ids: the cover, then the others in the order they had.
    """
    shown = {name: frozenset(presence[name]) for name in names}
    frequency = Counter(label for classes in shown.values() for label in classes)
    chosen, missing = [], set(frequency)
    for label in sorted(frequency, key=lambda c: (frequency[c], c)):
        if label in missing:
            candidates = [name for name in names if label in shown[name]]
            chosen.append(max(candidates, key=lambda name: len(shown[name] & missing)))
            missing -= shown[chosen[-1]]
    cover: dict[str, None] = {}
    seen: set[int] = set()
    while chosen and seen != set(frequency):
        best = max(chosen, key=lambda name: len(shown[name] - seen))
        cover[best] = None
        seen |= shown[best]
    return [*cover, *(name for name in names if name not in cover)]
