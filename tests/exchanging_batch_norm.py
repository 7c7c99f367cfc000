"""SyncBN on CPUs, which torch has for GPUs only: statistics are exchanged over gloo.

A layer first exchanges its number, so that ranks that skip a layer, or run layers in another order,
end at once with both names; SyncBN on GPUs would hang, or take statistics of one layer for those of
another.
"""

import torch
import torch.distributed.nn.functional as collectives
import torch.nn.functional as F
from mmengine.dist import all_gather, get_world_size
from torch.nn.modules.batchnorm import SyncBatchNorm, _BatchNorm


class ExchangingBatchNorm(_BatchNorm):  # DistributedDataParallel refuses a SyncBatchNorm on CPUs
    """Normalizes by mean and variance over all ranks, with gradients through both."""

    names = ()  # of all layers of the model, the same on all ranks
    number = None  # of this layer
    exchanges = 0  # of all layers

    def forward(self, x):
        if not self.training or get_world_size() == 1:
            # As SyncBN: no collective in eval mode, where ranks have different numbers of images.
            mean, var = self.running_mean, self.running_var
            return F.batch_norm(x, mean, var, self.weight, self.bias, self.training, eps=self.eps)
        self._meet()
        dims = [0, *range(2, x.ndim)]
        count = torch.full((x.shape[1],), x.numel() / x.shape[1])
        sums = torch.stack([x.sum(dims), x.square().sum(dims), count])
        sums, squares, count = collectives.all_reduce(sums)
        mean = sums / count
        var = squares / count - mean.square()
        if self.track_running_stats:
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var * count / (count - 1), self.momentum)
                self.num_batches_tracked += 1
        scale = self.weight / (var + self.eps).sqrt()
        shape = [1, -1] + [1] * (x.ndim - 2)
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)

    def _meet(self):
        """Refuse that ranks are at different layers."""
        ExchangingBatchNorm.exchanges += 1
        numbers = torch.cat(all_gather(torch.tensor([self.number]))).tolist()
        if len(set(numbers)) > 1:
            names = [self.names[number] for number in numbers]
            raise RuntimeError(f'the ranks exchange statistics of different layers: {names}')


def exchange_statistics(model):
    """Let all SyncBN layers of a model exchange statistics, in the place of their conversion."""
    layers = {n: m for n, m in model.named_modules() if isinstance(m, SyncBatchNorm)}
    for number, layer in enumerate(layers.values()):
        layer.__class__ = ExchangingBatchNorm
        layer.names, layer.number = list(layers), number
    return model
