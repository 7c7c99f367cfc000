"""What checks have in common: refusing settings, and naming what was found."""

import inspect
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, Callable, Optional


def refuse_unknown_keys(name: str, found: Iterable, known: Iterable) -> None:
    """Refuse a dict of settings with a key that has no meaning there.

    Args:
        name (str): How the config calls the dict, such as 'mutual.labeling'.
        found (Iterable[str]): Its keys.
        known (Iterable[str]): The keys that are read.

    Raises:
        ValueError: If a key is not known; the message has all unknown and all known ones.
    """
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(
            f'`{name}` has unknown keys {unknown}{meant(unknown[0], known)}; known: {sorted(known)}'
        )


def meant(key: Any, known: Iterable, cutoff: float = 0.7) -> str:
    """A question for the known name that is most like an unknown one; empty if none is."""
    alike = get_close_matches(str(key), map(str, known), n=1, cutoff=cutoff)
    return f' (is {alike[0]!r} meant?)' if alike else ''


def check_range(name: str, value: float, low: float, high: float = float('inf')) -> None:
    """Refuse a number outside [low, high].

    Raises:
        ValueError: With name, value and range.
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not low <= value <= high:
        kind = '' if is_number else f', a {type(value).__name__}: give a number'
        raise ValueError(f'`{name}` must be in [{low}, {high}], got {value!r}{kind}')


def check_count(name: str, value: Any, least: int) -> None:
    """Raise a ``ValueError`` for what is no integer of at least ``least``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f'`{name}` must be an integer of at least {least}, got {value!r}')


def check_choice(name: str, value: Any, choices: Collection) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        ValueError: With name, value and choices.
    """
    if value not in list(choices):  # a list cannot be looked up in a set
        raise ValueError(f'`{name}` must be one of {list(choices)}, got {value!r}')


def build_part(name: str, kind: Callable, settings: Optional[dict], *args: Any) -> Any:
    """Call ``kind(*args, **settings)``; unknown settings are refused with those that exist."""
    known = list(inspect.signature(kind).parameters)[len(args) :]
    refuse_unknown_keys(name, settings or {}, known)
    return kind(*args, **(settings or {}))


def listed(names: Sequence[str], limit: Optional[int] = 10, lines: bool = False) -> str:
    """The first of some names, or of ``lines``, and how many more: ``'a, b and 3 more'``."""
    between, last = ('\n', '\n... ') if lines else (', ', ' ')
    more = len(names) - len(names[:limit])
    return between.join(names[:limit]) + (f'{last}and {more} more' if more else '')
