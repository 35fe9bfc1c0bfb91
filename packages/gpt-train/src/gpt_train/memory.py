"""Keep freed memory in the process, where the C library would hand it back to the kernel each time."""

import ctypes
import platform

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Tell glibc to keep what is freed; return whether it was told (False on macOS, Windows and musl).

    glibc maps every block above 32 MB anew and unmaps it when it is freed, so each step pays the page faults
    of its large tensors (logits, gradients) again. Only for a process that trains: its memory never shrinks
    afterwards.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(_M_MMAP_MAX, 0) and libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
