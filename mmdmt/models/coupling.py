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

    Norms are Euclidean, over all parameters, of which both networks have the same.
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
    """Classes (N, H, W) that a network predicts in eval mode; its mode is restored."""
    with in_mode(network, training=False):
        return dense_logits(network, images).argmax(dim=1)


def disagreement(first: Tensor, second: Tensor, valid: Tensor) -> Tensor:
    """Share of valid pixels on which two predictions (N, H, W) differ."""
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
