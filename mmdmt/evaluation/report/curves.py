"""Logged values of runs by iteration."""

import contextlib
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Dict, List, Tuple

Curve = Dict[int, float]


def find_logs(work_dir: Path) -> List[Path]:
    """The scalar logs of a run, the oldest first.

    Raises:
        FileNotFoundError: If there are none.
    """
    logs = sorted(work_dir.glob('*/vis_data/scalars.json'))
    if not logs:
        raise FileNotFoundError(
            f'{work_dir} has no */vis_data/scalars.json: name the work dir of a run that has '
            'logged, with a LocalVisBackend'
        )
    return logs


def read_lines(logs: Sequence[Path]) -> Iterator[dict]:
    """Objects of logs with one JSON object a line; one that a killed run cut off is left out."""
    for log in logs:
        for line in log.read_text(encoding='utf-8', errors='replace').splitlines():
            with contextlib.suppress(ValueError):
                values = json.loads(line)
                if isinstance(values, dict) and 'step' in values:
                    yield values


def read_curves(logs: Sequence[Path], keys: Sequence[str]) -> Dict[str, Curve]:
    """Finite values of each key by iteration; a later log replaces values of an earlier one.

    Args:
        logs: Files of one JSON object a line, the oldest first.
        keys: Names of the values.

    Raises:
        KeyError: If a key was never logged, or never as a finite number.
    """
    curves, _ = read_all_curves(logs)
    missing = [key for key in keys if key not in curves]
    if missing:
        there = f'in {logs[0].parent}; there are {sorted(curves)}'
        raise KeyError(f'{missing[0]!r} was not logged {there}')
    return {key: curves[key] for key in keys}


def read_all_curves(logs: Sequence[Path]) -> Tuple[Dict[str, Curve], List[str]]:
    """Every finite number that was logged, and the names of those that validation gave."""
    curves: Dict[str, Curve] = {}
    scores = []
    for values in read_lines(logs):
        for key, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(key, {})[int(values['step'])] = float(value)
                if 'iter' not in values and key not in scores:  # training logs its iteration
                    scores.append(key)
    return curves, scores


def thin_out(curve: Curve, every: int) -> Curve:
    """Mean over windows of iterations, under the last iteration of each; as it is for 0."""
    if not every:
        return curve
    windows: Dict[int, List[float]] = {}
    for step, value in curve.items():
        windows.setdefault(-(-step // every) * every, []).append(value)
    return {step: sum(values) / len(values) for step, values in windows.items()}
