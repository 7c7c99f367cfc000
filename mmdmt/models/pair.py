"""The two sides of methods with two students, 'l' and 'r'."""

from typing import Dict

#: The other side of each side.
PEERS = {'l': 'r', 'r': 'l'}


def per_side(segmentor: dict) -> Dict[str, dict]:
    """The config of each student: one for both, or ``dict(l=..., r=...)``."""
    if 'type' in segmentor:
        return dict.fromkeys(PEERS, segmentor)
    if set(segmentor) != set(PEERS):
        raise ValueError(
            '`segmentor` must be the config of a segmentor, with a `type`, or '
            f'dict(l=..., r=...) with one for each student; got the keys {sorted(segmentor)}'
        )
    return {side: segmentor[side] for side in PEERS}


def students_of(segmentor: dict) -> Dict[str, dict]:
    """Configs by the names of the students, ``student_l`` and ``student_r``."""
    return {f'student_{side}': cfg for side, cfg in per_side(segmentor).items()}
