"""How many tensors of the size of the logits the losses make."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from mmdmt.models.losses import functional as L

N, C, H, W = 2, 8, 6, 7


class FullSizeTensors(TorchDispatchMode):
    """Counts new tensors with as many values as the logits; views and in-place results are not."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        known = {x.data_ptr() for x in tree_flatten((args, kwargs))[0] if torch.is_tensor(x)}
        result = function(*args, **(kwargs or {}))
        new = [x for x in tree_flatten(result)[0] if torch.is_tensor(x)]
        if any(x.numel() == N * C * H * W and x.data_ptr() not in known for x in new):
            self.names.append(function.__name__)
        return result


def batch(dtype):
    gen = torch.Generator().manual_seed(0)
    logits = torch.randn(N, C, H, W, generator=gen).to(dtype).requires_grad_()
    label = torch.randint(C, (N, H, W), generator=gen)
    label[0, :2] = 255
    return logits, label, torch.rand(N, H, W, generator=gen), torch.tensor([True, False])


LOSSES = {
    'mutual': lambda x, y, c, p: L.dynamic_mutual_loss(x, y, c, p, 5, 5),
    'flip': lambda x, y, c, p: L.dynamic_mutual_loss(x, y, c, p, 5, 5, conflict='flip'),
    'mutual_off': lambda x, y, c, p: L.dynamic_mutual_loss(x, y, c, p, 0, 0),
    'self': lambda x, y, c, p: L.dynamic_self_loss(x, y, p, 9, confidence=c),
    'online': lambda x, y, c, p: L.online_pseudo_loss(x, y, p, 0.3),
    'masked': lambda x, y, c, p: L.masked_cross_entropy(x, y, c, 0.3, y != 255),
    'ohem': lambda x, y, c, p: (L.ohem_cross_entropy(x, y, 0.3, 9), {}),
}


@pytest.mark.parametrize('name', LOSSES)
def test_a_loss_and_its_gradient_make_one_full_size_tensor_each(name):
    """The log-softmax, and the gradient of the logits."""
    data = batch(torch.float32)
    with FullSizeTensors() as forward:
        loss, _ = LOSSES[name](*data)
    assert forward.names == ['_log_softmax.default']
    with FullSizeTensors() as backward:
        loss.backward()
    assert backward.names == ['exp.default']
    assert data[0].grad.shape == data[0].shape


@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_costs_one_cast_at_most(name, dtype):
    """A GPU casts inside the softmax, a CPU before it."""
    data = batch(dtype)
    with FullSizeTensors() as forward:
        LOSSES[name](*data)
    assert len(forward.names) <= 2, forward.names
