"""What training frees stays with the process."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

FREES_200_MB = """
import sys
from pneumo_train.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
import numpy as np
import threading

def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) // 1000

def work():
    blocks = [np.ones(50_000_000, np.uint8) for _ in range(4)]
    print(resident())

# Where a thread has a heap of its own it would be another one.
threads = [threading.Thread(target=work) for _ in range(2)]
for thread in threads:
    thread.start()
    thread.join()
print(resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library than glibc: nothing is set")
def test_freed_memory_stays_and_is_used_again() -> None:
    megabytes = {}
    for way in ("keep", "return"):
        done = subprocess.run([sys.executable, "-c", FREES_200_MB, way], capture_output=True, text=True, check=True)
        megabytes[way] = [int(line) for line in done.stdout.split()]
    first, second, after = megabytes["keep"]
    assert after > second - 20
    assert second < first + 50  # the second thread took what the first one had freed
    assert megabytes["return"][2] < megabytes["return"][1] - 150
