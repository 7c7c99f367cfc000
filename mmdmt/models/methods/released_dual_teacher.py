"""Dual Teacher as its released code runs it."""

from typing import Any, Dict, Optional, Tuple

from torch import Tensor
from torchvision.transforms import ColorJitter, Compose, RandomGrayscale

from mmdmt.models.forward import Targets, dense_logits, stack_pixel_data
from mmdmt.models.views.shift import Shift
from mmdmt.registry import MODELS

from .dual_teacher import DualTeacher


class ReleasedShift(Shift):
    """A shift whose per-image weights come from the confidence before mixing, in 8 bits.

    So 0.95 is 243 / 255, and an image is weighted by the share of confident pixels that it had
    before others were pasted into it.
    """

    def forward(self, rgb: Tensor, targets: Targets, padded: bool) -> Tuple[Tensor, Targets]:
        """Mix, augment and flip everything but the confidence of a per-image shift."""
        rgb, mixed = super().forward(rgb, targets, padded)
        if self.per_image:
            mixed = mixed._replace(confidence=(targets.confidence * 255).floor() / 255)
        return rgb, mixed


@MODELS.register_module()
class ReleasedDualTeacher(DualTeacher):
    """:class:`DualTeacher` with what its released code does differently from the paper.

    For reproduction; ``docs/dual_teacher.md`` has the effects. Besides :class:`ReleasedShift`:

    - teachers label with batch statistics and dropout, and keep running statistics of their own
      (``ema=dict(mode='train', buffers='keep')``);
    - the strong view is made of normalized images, clipped to [0, 1], with one draw for the batch;
    - implicit consistency leaves out the pixels that are ignored in the *labeled* image at the
      same place of the batch;
    - its pass skips no residual blocks (DropPath stays) and moves the running statistics.

    Args:
        segmentor (dict): Config of an ordinary mmseg segmentor.
        ema: As of :class:`DualTeacher`, with the released values as defaults.
        **settings: Of :class:`DualTeacher`, but for ``strong`` and ``sub_model``, which are fixed.

    Raises:
        ValueError: If ``strong`` or ``sub_model`` is given.
    """

    shift_type = ReleasedShift

    def __init__(self, segmentor: dict, *, ema: Optional[dict] = None, **settings: Any) -> None:
        for name in ('strong', 'sub_model'):
            if settings.setdefault(name, None) is not None:
                raise ValueError(
                    f'ReleasedDualTeacher has no choice of `{name}`, got {settings[name]!r}: '
                    'remove it, or take DualTeacher'
                )
        ema = dict(dict(mode='train', buffers='keep'), **(ema or {}))
        super().__init__(segmentor, ema=ema, **settings)
        self.jitter = Compose([ColorJitter(0.5, 0.5, 0.5, 0.25), RandomGrayscale(0.2)])

    def views(self, inputs: Dict[str, Tensor], padded: bool) -> Tuple[Tensor, Tensor]:
        """Weak and strong view; torchvision clips whatever it adjusts, padding too, to [0, 1]."""
        weak = inputs['unsup_weak']
        denormalize = self.data_preprocessor.denormalize
        return denormalize(weak), denormalize(self.jitter(weak))

    def normalized(self, rgb: Tensor, valid: Tensor) -> Tensor:
        """Images as the network takes them; the padding is part of them."""
        return self.data_preprocessor.normalize(rgb)

    def consistency(self, images, targets: Targets, threshold, data_samples) -> Dict[str, Tensor]:
        """Implicit consistency on pixels that are not ignored in the labeled images."""
        label = stack_pixel_data(data_samples['sup'], 'gt_sem_seg')
        if label.shape != targets.label.shape:
            raise ValueError(
                'ReleasedDualTeacher pairs labeled and unlabeled images, but the batch has labels '
                f'{tuple(label.shape)} and unlabeled images {tuple(targets.label.shape)}: set '
                '`train_dataloader.sampler.source_ratio=[1, 1]` and an even batch size'
            )
        targets = targets._replace(valid=targets.valid & (label != 255))
        return super().consistency(images, targets, threshold, data_samples)

    def sub_model_logits(self, images: Tensor) -> Tensor:
        """Logits of the student in an ordinary pass."""
        return dense_logits(self.student, images)
