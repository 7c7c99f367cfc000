"""Refusal of settings that nobody reads."""

from collections.abc import Iterable


def refuse_unknown_keys(name: str, found: Iterable, known: Iterable) -> None:
    """Refuse a dict of settings with a key that has no meaning there.

    Args:
        name (str): How the config calls the dict, such as 'semi_train_cfg'.
        found (Iterable[str]): Its keys.
        known (Iterable[str]): The keys that are read.

    Raises:
        ValueError: If a key is not known; the message has all unknown and all known ones.
    """
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f'`{name}` has unknown keys {unknown}; known: {sorted(known)}')
