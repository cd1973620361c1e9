"""Makes the C library keep freed memory for what comes next."""

from __future__ import annotations

import ctypes
import platform

# Parameters of mallopt(3), from malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets glibc keep what is freed, in one heap for all threads; does nothing where there is another C library.

    A step of training frees and allocates hundreds of megabytes, the same sizes each time. glibc gives large blocks
    back to the kernel at once, which hands out zeroed pages again one by one: dear on a virtual machine. The price is
    that the process stays as large as it once was.

    To be called before other threads allocate: heaps that they have by then remain.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, -1)  # never
    mallopt(_M_ARENA_MAX, 1)
