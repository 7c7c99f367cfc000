"""Labeled/unlabeled split lists: published procedure, sizes of your own, class-aware draws.

Every function here draws the same way: sort the ids, seed one private ``random.Random``, shuffle
cumulatively once per fold, and take prefixes. Hence larger labeled sets of a fold contain the
smaller ones, and the same seed gives the same lists whichever way their size was named.
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Callable, Optional, Union

from mmdmt.files import write_text_atomically

Split = tuple[list[str], list[str]]
"""Two lists of ids: (labeled, unlabeled), or (left, right)."""

Splits = dict[tuple[float, int], Split]
"""Lists by (size as the caller named it, fold), fold by fold, sizes in the caller's order."""

PUBLISHED_SEED = 7777


def nested_splits(
    names: Iterable[str],
    denominators: Sequence[float],
    folds: int = 3,
    seed: int = PUBLISHED_SEED,
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
    ids = _sorted_ids(names)
    sizes = {d: published_size(len(ids), d) for d in denominators}
    return _draw(ids, sizes, folds, seed)


def fraction_split(
    names: Iterable[str],
    fractions: Sequence[float],
    folds: int = 1,
    seed: int = PUBLISHED_SEED,
) -> Splits:
    """Draw nested lists whose labeled part is a fraction in (0, 1], rounded to whole images.

    Args:
        names (Iterable[str]): All ids, in any order.
        fractions (Sequence[float]): 0.1 labels a tenth.
        folds (int): Number of draws. Defaults to 1.
        seed (int): Seed of the shuffles. Defaults to 7777.

    Returns:
        dict: ``{(fraction, fold): (labeled, unlabeled)}``.

    Raises:
        ValueError: On no ids, an id given twice, or a fraction that leaves no labeled image.
    """
    ids = _sorted_ids(names)
    sizes = {f: fraction_size(len(ids), f) for f in fractions}
    return _draw(ids, sizes, folds, seed)


def count_split(
    names: Iterable[str],
    counts: Sequence[int],
    folds: int = 1,
    seed: int = PUBLISHED_SEED,
) -> Splits:
    """Draw nested lists with the given numbers of labeled images.

    Args:
        names (Iterable[str]): All ids, in any order.
        counts (Sequence[int]): Labeled images of each set.
        folds (int): Number of draws. Defaults to 1.
        seed (int): Seed of the shuffles. Defaults to 7777.

    Returns:
        dict: ``{(count, fold): (labeled, unlabeled)}``.

    Raises:
        ValueError: On no ids, an id given twice, or a count below 1 or above the number of ids.
    """
    ids = _sorted_ids(names)
    sizes = {c: checked_count(len(ids), c) for c in counts}
    return _draw(ids, sizes, folds, seed)


def class_aware_split(
    presence: Mapping[str, Iterable[int]],
    counts: Sequence[int],
    folds: int = 1,
    seed: int = PUBLISHED_SEED,
) -> Splits:
    """Draw nested lists that show as many classes as they can.

    Each fold's shuffled ids are reordered by :func:`cover_classes_first`, so every set that is at
    least as large as that cover shows every class that occurs at all.

    Args:
        presence (Mapping[str, Iterable[int]]): For each id the classes its mask shows.
        counts (Sequence[int]): Labeled images of each set.
        folds (int): Number of draws. Defaults to 1.
        seed (int): Seed of the shuffles. Defaults to 7777.

    Returns:
        dict: ``{(count, fold): (labeled, unlabeled)}``.

    Raises:
        ValueError: On no ids, or a count below 1 or above the number of ids.
    """
    ids = _sorted_ids(presence)
    sizes = {c: checked_count(len(ids), c) for c in counts}
    return _draw(ids, sizes, folds, seed, lambda order: cover_classes_first(order, presence))


def cover_classes_first(names: Sequence[str], presence: Mapping[str, Iterable[int]]) -> list[str]:
    """Move to the front a small set of ids that together show every class.

    Greedy: take the rarest class not yet shown, and of its images the one that shows most missing
    classes (the earliest of equals). What the choice made redundant is put back, and what is left
    is ordered so that every prefix shows as much as it can.

    Args:
        names (Sequence[str]): Ids in drawn order.
        presence (Mapping[str, Iterable[int]]): For each id the classes its mask shows.

    Returns:
        list[str]: The same ids: the cover, then the others in the order they had.
    """
    shown = {name: frozenset(presence[name]) for name in names}
    chosen = _order_by_gain(_rarest_first_cover(names, shown), shown)
    in_cover = set(chosen)
    return chosen + [name for name in names if name not in in_cover]


def missing_classes(names: Iterable[str], presence: Mapping[str, Iterable[int]]) -> list[int]:
    """List the classes that occur in the data set but in none of ``names``, ascending."""
    everywhere = {c for classes in presence.values() for c in classes}
    return sorted(everywhere - {c for name in names for c in presence[name]})


def difference_maximized_subsets(
    names: Sequence[str],
    common: float = 0.6,
    rng: Optional[Union[random.Random, int]] = None,
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
    if not 0 <= common <= 1:
        raise ValueError(f'common={common} is not a share: give a number from 0 to 1')
    if not isinstance(rng, random.Random):
        rng = random.Random(PUBLISHED_SEED if rng is None else rng)
    order = list(names)
    rng.shuffle(order)
    only_one = math.ceil((1 - common) / 2 * len(order))
    return order[: len(order) - only_one], order[only_one:]


def difference_maximized_splits(
    splits: Mapping[Hashable, Split], common: float = 0.6, seed: int = PUBLISHED_SEED
) -> dict:
    """Draw left/right subsets of every labeled list, from one stream, in the order given.

    Args:
        splits (Mapping): Result of one of the split functions.
        common (float): Share of the ids that is in both subsets. Defaults to 0.6.
        seed (int): Seed of the stream. Defaults to 7777.

    Returns:
        dict: ``{key: (left, right)}`` with the keys of ``splits``.
    """
    rng = random.Random(seed)
    return {
        key: difference_maximized_subsets(labeled, common, rng)
        for key, (labeled, _) in splits.items()
    }


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
    if size == 0:
        raise ValueError(f'denominator {denominator} leaves no labeled image of {total}')
    return min(size + (size % 8 == 1), total)


def fraction_size(total: int, fraction: float) -> int:
    """Number of labeled images among ``total`` for a share of them.

    Raises:
        ValueError: If the share is outside (0, 1] or leaves no labeled image.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f'fraction {fraction} is outside (0, 1]: 0.1 labels a tenth')
    size = round(total * fraction)
    if size == 0:
        raise ValueError(f'fraction {fraction} leaves no labeled image of {total}')
    return size


def checked_count(total: int, count: int) -> int:
    """Return ``count`` if so many of ``total`` images can be labeled.

    Raises:
        ValueError: If it is not a whole number from 1 to ``total``.
    """
    if int(count) != count or not 1 <= count <= total:
        raise ValueError(f'count {count} is not a whole number from 1 to {total}, all there are')
    return int(count)


def list_digest(names: Iterable[str]) -> str:
    """Return the sha256 (hex) of the newline-joined list; order counts."""
    return hashlib.sha256('\n'.join(names).encode()).hexdigest()


def read_list(path: Union[str, Path]) -> list[str]:
    """Read a list file: one id a line, blank lines and surrounding spaces left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If an id is in it twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f'list file {path} does not exist')
    with open(path, encoding='utf-8-sig') as lines:
        ids = [line.strip() for line in lines if line.strip()]
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise ValueError(f'{path} holds {len(twice)} ids twice, the first is {twice[0]!r}')
    return ids


def write_list(path: Union[str, Path], names: Iterable[str]) -> None:
    """Write one id a line, atomically: a reader sees the old list or the whole new one."""
    write_text_atomically(path, ''.join(f'{name}\n' for name in names))


def _sorted_ids(names: Iterable[str]) -> list[str]:
    ids = sorted(names)
    if not ids:
        raise ValueError('there are no ids to split: the list or folder is empty')
    twice = [name for name, times in Counter(ids).items() if times > 1]
    if twice:
        raise ValueError(f'{len(twice)} ids are given more than once, the first is {twice[0]!r}')
    return ids


def _draw(
    ids: Sequence[str],
    sizes: Mapping[float, int],
    folds: int,
    seed: int,
    reorder: Callable[[list[str]], list[str]] = list,
) -> Splits:
    """Shuffle cumulatively once per fold and cut prefixes; ``reorder`` sees each fold's order."""
    if folds < 1:
        raise ValueError(f'folds={folds}: at least one draw is needed')
    rng = random.Random(seed)
    order = list(ids)
    splits = {}
    for fold in range(folds):
        rng.shuffle(order)  # in place: the next fold shuffles this fold's order, as published
        fold_order = reorder(order)
        for key, size in sizes.items():
            splits[key, fold] = (fold_order[:size], fold_order[size:])
    return splits


def _rarest_first_cover(names: Sequence[str], shown: Mapping[str, frozenset]) -> list[str]:
    """Choose ids until every class is shown, serving the rarest missing class first."""
    images_with: dict[int, list[str]] = {}
    for name in names:
        for label in shown[name]:
            images_with.setdefault(label, []).append(name)
    missing = set(images_with)
    chosen = []
    for label in sorted(images_with, key=lambda c: (len(images_with[c]), c)):
        if label in missing:
            best = max(images_with[label], key=lambda name: len(shown[name] & missing))
            chosen.append(best)
            missing -= shown[best]
    return chosen


def _order_by_gain(names: Sequence[str], shown: Mapping[str, frozenset]) -> list[str]:
    """Order ids by how many new classes each adds; leave out those that add none."""
    left, seen, ordered = list(names), set(), []
    while left:
        best = max(left, key=lambda name: len(shown[name] - seen))
        if not shown[best] - seen:
            break
        ordered.append(best)
        seen |= shown[best]
        left.remove(best)
    return ordered
