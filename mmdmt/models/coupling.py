"""How alike a teacher and its student are."""

from typing import Dict

import torch
from mmseg.models.segmentors import BaseSegmentor
from torch import Tensor, nn

from mmdmt.models.forward import dense_logits
from mmdmt.models.modes import in_mode


@torch.no_grad()
def parameter_distance(teacher: nn.Module, student: nn.Module) -> Tensor:
    """Distance of the parameters relative to their size, ``|teacher - student| / |student|``.

    Args:
        teacher (nn.Module): A network.
        student (nn.Module): A network with the same parameters.

    Returns:
        Tensor: A scalar, 0 for equal parameters. Norms are Euclidean, over all parameters.
    """
    ours = [parameter.detach() for parameter in teacher.parameters()]
    theirs = [parameter.detach() for parameter in student.parameters()]
    differences = torch._foreach_norm(torch._foreach_sub(ours, theirs))
    sizes = torch._foreach_norm(theirs)
    smallest = torch.finfo(torch.float32).tiny
    distance, size = (torch.stack(norms).float().norm() for norms in (differences, sizes))
    return distance / size.clamp(min=smallest)


@torch.no_grad()
def predicted_classes(network: BaseSegmentor, images: Tensor) -> Tensor:
    """Classes that a network predicts in eval mode; its mode is restored.

    Args:
        network (BaseSegmentor): Any segmentor.
        images (Tensor): Normalized images, (N, 3, H, W).

    Returns:
        Tensor: (N, H, W), long.
    """
    with in_mode(network, training=False):
        return dense_logits(network, images).argmax(dim=1)


def disagreement(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Share of pixels on which two predictions differ.

    Args:
        first (Tensor): Classes, (N, H, W).
        second (Tensor): Classes, (N, H, W).
        valid (Tensor): (N, H, W) bool, False on padding.

    Returns:
        Tensor: A scalar in [0, 1].
    """
    return ((first != second) & valid).sum() / valid.sum().clamp(min=1)


def coupling(model, inputs: Dict[str, Tensor]) -> Dict[str, Dict[str, Tensor]]:
    """Distance and disagreement of every teacher of a model and the student it follows.

    Args:
        model (SemiSegmentor): Students and teachers.
        inputs (dict[str, Tensor]): ``unsup_weak`` (N, 3, H, W) and ``unsup_valid`` (N, H, W).

    Returns:
        dict[str, dict[str, Tensor]]: By teacher: ``distance`` of the parameters, and
        ``disagreement`` of the predictions on the weak view, all networks in eval mode.
    """
    images, valid = inputs['unsup_weak'], inputs['unsup_valid']
    classes = {name: predicted_classes(model.network(name), images) for name in model.network_names}
    return {
        teacher: dict(
            distance=parameter_distance(model.network(teacher), model.network(student)),
            disagreement=disagreement(classes[teacher], classes[student], valid),
        )
        for teacher, student in model.student_of.items()
    }
