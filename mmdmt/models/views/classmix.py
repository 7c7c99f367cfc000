"""ClassMix."""

from torch import Tensor

from mmdmt.checks import check_range
from mmdmt.models.forward import Targets
from mmdmt.registry import MODELS

from .masks import class_mask
from .mix import MixView


@MODELS.register_module()
class ClassMix(MixView):
    """Paste half of the (predicted) classes of each image onto a partner image.

    Args:
        prob (float): Probability, per image, of mixing. Defaults to 1.
        num_classes (int): Upper bound of the labels; it only has to be large enough.
        ignore_index (int): Label that is no class.
        round_up (bool): Keep the larger half of an odd number of classes. The released code keeps
            the smaller one. Defaults to False.
        partner (str): See :func:`~mmdmt.models.views.partners.mix_partners`. Defaults to 'cycle'.
    """

    def __init__(
        self,
        prob: float = 1.0,
        num_classes: int = 256,
        ignore_index: int = 255,
        round_up: bool = False,
        partner: str = 'cycle',
    ) -> None:
        super().__init__(prob, partner)
        check_range('ClassMix.num_classes', num_classes, 1)
        self.num_classes = num_classes
        self.ignore_index = ignore_index
        self.round_up = round_up

    def mask(self, targets: Targets) -> Tensor:
        """Choose half of the classes of each image; padding counts for none."""
        return class_mask(
            targets.label, self.num_classes, targets.valid, self.ignore_index, self.round_up
        )

    def extra_repr(self) -> str:
        """Settings as shown by ``print(module)``."""
        return f'prob={self.prob}, partner={self.partner!r}, round_up={self.round_up}'
