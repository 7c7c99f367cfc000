"""Shows on the CPU what would make the host wait for a GPU."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# Their results, or the size of them, depend on values.
WAITING = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', '_unique2')


class NoWaiting(TorchDispatchMode):
    """Refuses operations inside a ``with`` block for which the host would wait for a GPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        masks = name.startswith('index') and any(
            isinstance(index, torch.Tensor) and index.dtype == torch.bool
            for index in (args[1] if isinstance(args[1], (list, tuple)) else [])
        )
        assert name not in WAITING and not masks, f'{name} waits for the device'
        return func(*args, **(kwargs or {}))
