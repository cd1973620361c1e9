"""Settings of this process that make training faster. They must be made before TensorFlow is imported."""

from __future__ import annotations

import ctypes
import os
import platform
from pathlib import Path

from pneumo_train.backbones import BACKBONES

# Parameters of mallopt(3), from malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_PROCESSORS = Path("/proc/cpuinfo")


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


def choose_kernels(backbone: str) -> None:
    """Lets TensorFlow train a light backbone without oneDNN on processors of AMD.

    There its own kernels were 1.5 times as fast (Zen 5), and on an Intel Xeon with AMX 1.36 times as slow. A user's own
    TF_ENABLE_ONEDNN_OPTS is left as it is.

    Args:
        backbone: Name of the network; of one that is not known nothing is known.
    """
    if backbone in BACKBONES and BACKBONES[backbone].light and "AuthenticAMD" in _processors():
        os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")


def _processors() -> str:
    try:
        return _PROCESSORS.read_text(encoding="utf-8", errors="replace")
    except OSError:
        # Another system than Linux.
        return ""
