"""Base of the methods that learn labels of a weak view on a strong one."""

from typing import Dict, Optional, Tuple, Union

from torch import Tensor

from mmdmt.checks import check_choice
from mmdmt.models.forward import Targets
from mmdmt.models.losses.functional import NORMALIZERS
from mmdmt.models.thresholds import build_threshold
from mmdmt.registry import MODELS

from .base import SemiSegmentor


class WeakToStrong(SemiSegmentor):
    """Settings that methods with hard labels, a threshold and strong views have in common.

    Args:
        students, teachers: As of :class:`.SemiSegmentor`.
        strong (dict, optional): Config of the strong augmentation. Defaults to the weak view.
        mix (dict, optional): Config of a mixing view, such as ``dict(type='mmdmt.CutMix')``.
        threshold (float | dict): Confidence a pixel needs, in [0, 1], or the config of a threshold
            that adapts. Defaults to 0.95.
        normalizer (str): What the sum over confident pixels is divided by, see
            :func:`~mmdmt.models.losses.functional.masked_cross_entropy`. Defaults to 'valid'.
        **common: Settings of :class:`.SemiSegmentor`.
    """

    def __init__(
        self,
        students: Dict[str, dict],
        teachers: Optional[Dict[str, str]] = None,
        *,
        strong: Optional[dict] = None,
        mix: Optional[dict] = None,
        threshold: Union[float, dict] = 0.95,
        normalizer: str = 'valid',
        **common,
    ) -> None:
        super().__init__(students, teachers, **common)
        self.strong = MODELS.build(strong) if strong else None
        self.mix = MODELS.build(mix) if mix else None
        self.threshold = build_threshold(threshold)
        check_choice('normalizer', normalizer, NORMALIZERS)
        self.normalizer = normalizer

    def mixed_view(
        self,
        inputs: Dict[str, Tensor],
        data_samples: Dict[str, list],
        targets: Targets,
        pasted: Optional[Targets] = None,
    ) -> Tuple[Tensor, Targets]:
        """A new strong view (N_u, 3, H, W), mixed together with what is to be learned on it.

        Pixels of a partner have its targets, or those of ``pasted`` where they are given.
        """
        view = self.strong_view(self.strong, inputs, data_samples)
        if self.mix is None:
            return view, targets
        mixing = self.mix.draw(targets)
        return mixing(view)[0], mixing.targets(targets, pasted or targets)
