"""The machine that a result names, and the means to show it as an older one."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

SOURCE = ROOT / "benchmarks" / "as_older_processor.c"

SAY = """
import json, numpy
from pneumo_bench.machine import describe_machine
numpy.show_runtime()
print(json.dumps(describe_machine()["instructions"]))
"""
"""NumPy asks CPUID by itself which instructions there are."""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or platform.machine() != "x86_64" or shutil.which("cc") is None:
        pytest.skip("an older processor can be played on x86-64 Linux with a C compiler alone")
    built = tmp_path_factory.mktemp("older") / "as_older_processor.so"
    subprocess.run(["cc", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", "-o", built, SOURCE], check=True)
    return built


def run_as(library: Path, older: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PNEUMO_BENCH_AS": older, "LD_PRELOAD": str(library)}
    line = [sys.executable, "-c", SAY]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    if "no CPUID faulting" in done.stderr:
        pytest.skip("this processor or its hypervisor has no CPUID faulting")
    return done


@pytest.mark.parametrize("older", ["avx2", "avx_vnni"])
def test_programs_see_an_older_processor_and_results_say_so(older: str, library: Path) -> None:
    done = run_as(library, older)
    assert done.returncode == 0, done.stderr
    found = done.stdout.split("'found':")[1].split("]")[0]
    assert "AVX2" in found or "X86_V3" in found
    assert "AVX512" not in found
    assert "X86_V4" not in found
    assert '["avx2"' in done.stdout
    assert "avx512" not in done.stdout.splitlines()[-1]


def test_an_unknown_processor_is_refused(library: Path) -> None:
    done = run_as(library, "pentium")
    assert done.returncode == 2
    assert done.stderr.splitlines()[0] == "as_older_processor: PNEUMO_BENCH_AS must be avx2 or avx_vnni"


def test_without_the_library_the_name_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    from pneumo_bench.machine import describe_machine

    as_it_is = describe_machine()["instructions"]
    monkeypatch.setenv("PNEUMO_BENCH_AS", "avx2")
    assert describe_machine()["instructions"] == as_it_is
