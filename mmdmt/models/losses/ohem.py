"""Online hard example mining as a loss of a decode head."""

from typing import Optional

from torch import Tensor, nn

from mmdmt.checks import check_count, check_range
from mmdmt.registry import MODELS

from .functional import ohem_cross_entropy


@MODELS.register_module()
class OhemCrossEntropy(nn.Module):
    """:func:`~mmdmt.models.losses.functional.ohem_cross_entropy` as a ``loss_decode`` of mmseg.

    Published numbers of pixels are those of a device: UniMatch (and UniMatch V2) keeps 200,000 of
    its 2 labeled images of a device, CPS 50,000 of 1. With ``per_image`` the number is that of an
    image, so that the loss stays the same when the batch is spread over more or fewer devices.

    Args:
        thresh (float): Softmax of the class up to which a pixel is hard. Defaults to 0.7.
        min_kept (int): Number of pixels that are learned at least. Defaults to 100,000.
        per_image (bool): Whether ``min_kept`` is multiplied by the number of images of the batch.
            Hard pixels are searched in the whole batch either way. Defaults to True.
        loss_weight (float): Defaults to 1.
        loss_name (str): Name in the log. Defaults to 'loss_ohem'.
    """

    def __init__(
        self,
        thresh: float = 0.7,
        min_kept: int = 100000,
        per_image: bool = True,
        loss_weight: float = 1.0,
        loss_name: str = 'loss_ohem',
    ) -> None:
        super().__init__()
        check_range('thresh', thresh, 0, 1)
        check_count('min_kept', min_kept, 0)
        self.thresh = thresh
        self.min_kept = min_kept
        self.per_image = per_image
        self.loss_weight = loss_weight
        self.loss_name = loss_name

    def forward(
        self,
        logits: Tensor,
        label: Tensor,
        weight: Optional[Tensor] = None,
        ignore_index: int = 255,
    ) -> Tensor:
        """Loss of logits (N, C, H, W) with labels (N, H, W); pixels have no other weights."""
        if weight is not None:
            raise ValueError('mmdmt.OhemCrossEntropy samples pixels itself: set no `sampler`')
        min_kept = self.min_kept * (len(logits) if self.per_image else 1)
        loss = ohem_cross_entropy(logits, label, self.thresh, min_kept, ignore_index)
        return self.loss_weight * loss
