"""Shows on the CPU what would make the host wait for a GPU, or lie on the wrong device."""

import collections
import traceback

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Their results, or the size of them, depend on values.
WAITING = ('_local_scalar_dense', 'nonzero', 'masked_select', 'unique', '_unique2')


def waiting(func, args):
    """Name of an operation whose result, or its size, the host has to read; None for others."""
    name = func.overloadpacket.__name__
    indices = args[1] if name.startswith('index') and isinstance(args[1], (list, tuple)) else []
    if any(isinstance(index, torch.Tensor) and index.dtype == torch.bool for index in indices):
        return f'{name} by a mask'
    return name if name in WAITING else None


class NoWaiting(TorchDispatchMode):
    """Refuses operations inside a ``with`` block for which the host would wait for a GPU.

    Tensors are real, so it sees the backward pass, but takes draws on the CPU for what they are
    not.
    """

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = waiting(func, args)
        assert name is None, f'{name} waits for the device'
        return func(*args, **(kwargs or {}))


class VirtualGPU(TorchDispatchMode):
    """A GPU whose tensors have shapes and no values, inside a ``with`` block.

    CPU tensors are real. An operation that mixes devices raises as on a GPU. ``waits`` counts by
    place what the host would wait for: values that are read, results whose size depends on values,
    and copies to or from the device that do not say ``non_blocking``. Backward passes do not run.
    """

    def __init__(self):
        super().__init__()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits = collections.Counter()

    def __enter__(self):
        self._fake.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self._fake.__exit__(*error)

    def move(self, model):
        """Give a model parameters and buffers on this GPU."""
        for module in model.modules():
            for store in (module._parameters, module._buffers):
                for name, value in store.items():
                    if value is not None:
                        store[name] = self._moved(value)
            if hasattr(module, '_device'):
                module._device = torch.device('cuda')
        return model

    def _moved(self, value):
        with self._fake:
            fake = torch.empty_strided(
                value.shape, value.stride(), dtype=value.dtype, device='cuda'
            )
        if not isinstance(value, torch.nn.Parameter):
            return fake
        return torch.nn.Parameter(fake, requires_grad=value.requires_grad)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        devices = [leaf for leaf in leaves if isinstance(leaf, torch.device)]
        fakes = [leaf for leaf in leaves if isinstance(leaf, FakeTensor)]
        if not fakes and not any(device.type == 'cuda' for device in devices):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if _is_blocking_copy(func, args, kwargs, devices):
            self.waits[f'copy at {_place()}'] += 1
        name = waiting(func, args) if isinstance(args[0], FakeTensor) else None
        if name is None:
            return func(*args, **kwargs)
        self.waits[f'{name} at {_place()}'] += 1
        return _some_result(func, *args)


def _is_blocking_copy(func, args, kwargs, devices):
    """Whether an operation copies between host and device, and waits until it is done."""
    name = func.overloadpacket.__name__
    if name == '_to_copy':
        target = devices[0].type if devices else args[0].device.type
        return target != args[0].device.type and not kwargs.get('non_blocking')
    if name == 'copy_':
        non_blocking = args[2] if len(args) > 2 else kwargs.get('non_blocking')
        return args[0].device.type != args[1].device.type and not non_blocking
    return False


def _some_result(func, first, *args):
    """A result of an operation whose values, or size, are not known."""
    name = func.overloadpacket.__name__
    if name == '_local_scalar_dense':
        return 0.5 if first.dtype.is_floating_point else first.dtype is torch.bool or 1
    if name == 'nonzero':
        return first.new_empty((first.numel(), first.dim()), dtype=torch.long)
    if name == 'index':
        dims = sum(1 if index is None else max(1, index.dim()) for index in args[0])
        count = next(index.numel() for index in args[0] if index is not None)
        kept = [first.shape[dim] for dim, index in enumerate(args[0]) if index is None]
        return first.new_empty([*kept, count, *first.shape[dims:]])
    raise NotImplementedError(f'VirtualGPU has no result of {name}')


def _place():
    """The innermost lines of code outside of torch."""
    frames = [
        f'{frame.filename}:{frame.lineno}'
        for frame in traceback.extract_stack()
        if 'site-packages/torch' not in frame.filename and frame.filename != __file__
    ]
    return ' <- '.join(frames[:-4:-1])
