"""Which stages mutual training has and what each depends on."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Dict, List, Optional

from mmdmt.checks import refuse_unknown_keys

MEMBER_KEYS = {'name', 'seed', 'labeled_list', 'load_from', 'cfg_options'}
#: Which checkpoint of a stage goes on: its last, its best on validation, or the member's best on
#: validation over all rounds so far.
SELECT_RULES = ('last', 'best', 'best_so_far')


_MEMBER_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_-]*')  # part of folder names
_STAGE_NAME = re.compile(r'(?:stage_|round_)?(\d+)[._](.+)')


@dataclass(frozen=True)
class Stage:
    """One training run of one member.

    Attributes:
        round (int): 0 for the labeled-only stage, then 1, 2, ...
        member (str): Name of the member that is trained.
        teacher (str, optional): Name of the member that labels; None in round 0.
        ratio (float, optional): Share of pixels kept per class; None in round 0.
    """

    round: int
    member: str
    teacher: Optional[str] = None
    ratio: Optional[float] = None

    @property
    def name(self) -> str:
        """Name of the stage and of its folder: ``stage_<round>_<member>``."""
        return f'stage_{self.round}_{self.member}'

    @property
    def previous(self) -> Optional[str]:
        """Stage whose weights this one starts from."""
        return Stage(self.round - 1, self.member).name if self.round else None

    @property
    def labeled_by(self) -> Optional[str]:
        """Stage whose weights make the pseudo-labels."""
        return Stage(self.round - 1, self.teacher).name if self.round else None

    @property
    def needs(self) -> List[str]:
        """Names of the stages that must be finished before this one."""
        return sorted({self.previous, self.labeled_by}) if self.round else []


class MutualPlan:
    """The stages of a ``mutual`` config, in an order in which they can be run.

    Round 0 trains every member on the labeled images. In round r, member i is trained on
    pseudo-labels made by member i + 1 (the last by the first) as it was **after round r - 1**, so
    that both members of a round are independent of each other (DMT; the published scripts label
    with ``__p${i}`` checkpoints). A single member labels for itself: self-training.

    Args:
        members (Sequence[dict]): One dict per member: ``name`` (default a, b, c, ...), ``seed``
            (default 0, 1, 2, ...; ``randomness.seed`` is added), ``labeled_list`` (for round 0,
            such as one of two difference-maximized subsets), ``load_from`` (a checkpoint to start
            from) and ``cfg_options`` (merged into the config of all its stages).
        ratios (Sequence[float]): One per round: share of the unlabeled pixels kept per class.
    """

    def __init__(self, members: Sequence[dict], ratios: Sequence[float]) -> None:
        _check_lists(members, ratios)
        self.members = []
        for index, member in enumerate(members):
            refuse_unknown_keys(f'mutual.members[{index}]', member, MEMBER_KEYS)
            self.members.append(dict(dict(name=chr(ord('a') + index)), **member))
        self.ratios = list(ratios)
        names = self.member_names
        if not names or len(set(names)) != len(names):
            raise ValueError(f'`mutual.members` needs different names, got {names}')
        odd = [name for name in names if not _MEMBER_NAME.fullmatch(str(name))]
        if odd:
            raise ValueError(
                f'`mutual.members` has the names {odd}, which name folders: use letters, digits, '
                '"-" and "_"'
            )

    @property
    def member_names(self) -> List[str]:
        """Names of the members."""
        return [member['name'] for member in self.members]

    def member(self, name: str) -> Dict[str, Any]:
        """Settings of a member."""
        return self.members[self.member_names.index(name)]

    @property
    def stages(self) -> List[Stage]:
        """All stages, round by round."""
        names = self.member_names
        stages = [Stage(0, name) for name in names]
        for index, ratio in enumerate(self.ratios, start=1):
            stages += [
                Stage(index, name, teacher, ratio)
                for name, teacher in zip(names, names[1:] + names[:1])
            ]
        return stages

    def find(self, text: str) -> Stage:
        """The stage called ``stage_2_a``, ``round_2.a`` or ``2.a``; others raise ``ValueError``."""
        found = _STAGE_NAME.fullmatch(text)
        for stage in self.stages:
            if found and found.groups() == (str(stage.round), stage.member):
                return stage
        raise ValueError(f'No stage {text!r}; stages are {[s.name for s in self.stages]}')

    def with_later(self, stage: Stage) -> List[Stage]:
        """A stage and all that are made from it, in order."""
        chosen = {stage.name}
        for other in self.stages:
            if chosen & set(other.needs):
                chosen.add(other.name)
        return [other for other in self.stages if other.name in chosen]


def _check_lists(members: Any, ratios: Any) -> None:
    """Refuse what are no lists, such as a single ratio or the number of members."""
    listed = isinstance(members, (list, tuple)) and all(isinstance(m, dict) for m in members)
    if not listed:
        raise ValueError(f'`mutual.members` must be a list of dicts, got {members!r}')
    listed = isinstance(ratios, (list, tuple)) and all(isinstance(r, (int, float)) for r in ratios)
    if not listed or not all(0 < ratio <= 1 for ratio in ratios):
        raise ValueError(
            f'`mutual.ratios` must be a list of numbers in (0, 1], one per round, got {ratios!r}'
        )
