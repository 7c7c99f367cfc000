"""The memory of training on a CPU."""

import ctypes
import os
import platform

# Of malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_PAD = 64 << 20  # bytes


def keep_freed_memory() -> bool:
    """Let the C library keep what a training step frees for the next step, where it is glibc.

    As it comes, glibc gives blocks of megabytes, such as feature maps, back to the system, which
    hands them out again page by page: up to a fifth of a step of two networks. The memory of the
    process then stays at its peak, which each step reaches anyway. mallopt(3) has the settings.
    Variables ``MALLOC_*`` of the environment and other allocators are left alone.

    Returns:
        Whether the settings were made.
    """
    own = any(name.startswith('MALLOC_') for name in os.environ) or 'LD_PRELOAD' in os.environ
    if own or platform.libc_ver()[0] != 'glibc':
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_TRIM_THRESHOLD, -1), (_M_TOP_PAD, _PAD), (_M_MMAP_MAX, 0))
    return all(mallopt(name, value) for name, value in settings)
