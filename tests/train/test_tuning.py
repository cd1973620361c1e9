"""The settings under which training is faster."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pneumo_train import tuning
from pneumo_train.tuning import choose_kernels

FREES_200_MB = """
import sys
from pneumo_train.tuning import keep_freed_memory
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


@pytest.mark.parametrize(
    ("vendor", "backbone", "own", "chosen"),
    [
        ("AuthenticAMD", "efficientnet_lite0", None, "0"),
        ("AuthenticAMD", "mobilenetv2", None, "0"),
        ("AuthenticAMD", "efficientnet_lite0", "1", "1"),
        ("AuthenticAMD", "resnet50", None, None),
        ("AuthenticAMD", "of a damaged run", None, None),
        ("GenuineIntel", "efficientnet_lite0", None, None),
        (None, "efficientnet_lite0", None, None),
    ],
)
def test_one_dnn_is_left_out_where_it_was_slower(
    vendor: str | None,
    backbone: str,
    own: str | None,
    chosen: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if vendor:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", encoding="utf-8")
    monkeypatch.setattr(tuning, "_PROCESSORS", tmp_path / "cpuinfo")
    # Set first, so that what the function sets is gone after the test.
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", own or "")
    if own is None:
        monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS")
    choose_kernels(backbone)
    assert os.environ.get("TF_ENABLE_ONEDNN_OPTS") == chosen
