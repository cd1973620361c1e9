"""Describes the machine that a benchmark ran on, and tells whether other programs kept it busy meanwhile."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from pneumo_edge.classifier import usable_cores
from pneumo_edge.errors import MissingExtraError
from pneumo_edge.versions import installed_versions

PACKAGES = ("pneumo", "numpy", "pillow", "onnxruntime", "ai-edge-litert", "openvino")
KERAS_PACKAGES = ("keras", "tensorflow", "tensorflow-cpu")

BUSY_OTHERS = 0.05
"""Share of all processor time, taken by other processes during the run, from which the machine counts as busy."""
BUSY_STEAL = 0.02
"""The same share for what the hypervisor gave to other guests."""

_TELLING_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
"""Instructions by which engines choose their int8 and float kernels, on x86-64 and on 64-bit Arm."""

_SHOWN_AS = {"avx2": ("avx2",), "avx_vnni": ("avx2", "avx_vnni")}
"""PNEUMO_BENCH_AS -> what benchmarks/as_older_processor.c leaves of these instructions."""


def describe_machine(packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Returns processor, cores, governor, memory in bytes, system, and the versions of the packages found."""
    psutil = _psutil()
    versions = {"python": platform.python_version()} | installed_versions(packages)
    facts = _cpuinfo()
    flags = (facts.get("flags") or facts.get("Features") or "").split()
    shown_as = os.environ.get("PNEUMO_BENCH_AS") if "as_older_processor" in os.environ.get("LD_PRELOAD", "") else None
    if shown_as is not None:
        flags = [flag for flag in flags if flag in _SHOWN_AS[shown_as]]
    return {
        "processor": facts.get("model name") or _board() or platform.processor() or platform.machine(),
        "architecture": platform.machine(),
        "instructions": [flag for flag in _TELLING_FLAGS if flag in flags],
        # None: the instructions are all that the processor has.
        "shown_as": shown_as,
        "cores": usable_cores(),
        # Virtual machines have none: the host decides.
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory": psutil.virtual_memory().total,
        # What follows the number of the kernel names who built it.
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "versions": versions,
    }


class Watch:
    """Watches the processors from its creation to `finish`."""

    def __init__(self) -> None:
        self._psutil = _psutil()
        self._load = self._psutil.getloadavg()[0]
        self._start, self._own, self._all = time.perf_counter(), _own_seconds(), self._psutil.cpu_times()

    def finish(self, children_seconds: float = 0.0) -> dict[str, Any]:
        """Returns the load averages, the shares of other programs, and `busy`: one sentence for each sign of them.

        Args:
            children_seconds: Processor time of the children of this process and of theirs, where the caller knows it.
                Without it, only those count as this process's own for which somebody has waited.
        """
        cores = os.cpu_count() or 1
        there = cores * (time.perf_counter() - self._start)
        now = self._psutil.cpu_times()

        def passed(*kinds: str) -> float:
            return sum(getattr(now, kind, 0.0) - getattr(self._all, kind, 0.0) for kind in kinds)

        own, waited_for = (now - before for now, before in zip(_own_seconds(), self._own, strict=True))
        own += max(waited_for, children_seconds)
        others = max(0.0, passed("user", "nice", "system", "irq", "softirq") - own) / there
        steal = max(0.0, passed("steal")) / there
        # Not by the load average at the start, which still contains programs that have ended, such as the last
        # benchmark.
        busy = []
        if others > BUSY_OTHERS:
            busy.append(f"other processes took {others:.0%} of the processor time during the run")
        if steal > BUSY_STEAL:
            busy.append(f"the hypervisor took {steal:.0%} of the processor time during the run")
        return {
            "load_average_before": round(self._load, 2),
            "load_average_after": round(self._psutil.getloadavg()[0], 2),
            "others_share": round(others, 4),
            "steal_share": round(steal, 4),
            "seconds": round(there / cores, 1),
            "busy": busy,
        }


def peak_rss() -> int:
    """Returns the most memory that this process has held so far, in bytes; where that is unknown, what it holds now.

    On Linux `ru_maxrss` would not do: in a child it starts at the size of the parent.
    """
    status = _text("/proc/self/status") or ""
    for line in status.splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    memory = _psutil().Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))


def _psutil() -> Any:
    try:
        return import_module("psutil")
    except ImportError:
        raise MissingExtraError("psutil", "bench", "watching the load of the machine") from None


def _own_seconds() -> tuple[float, float]:
    """Returns the processor time of this process, and that of those of its children for which it has waited."""
    own = os.times()
    return own.user + own.system, own.children_user + own.children_system


def _cpuinfo() -> dict[str, str]:
    """Returns the first processor of /proc/cpuinfo; empty where there is no such file."""
    pairs = (line.split(":", 1) for line in (_text("/proc/cpuinfo") or "").split("\n\n")[0].splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _board() -> str | None:
    """Returns the name of a single-board computer, whose cpuinfo has no model name."""
    return (_text("/proc/device-tree/model") or "").strip("\0 \n") or None


def _text(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None
