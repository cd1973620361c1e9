"""A folder is whole or not there, whatever happens to the process that writes it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pneumo_edge import atomic
from pneumo_edge.atomic import replacing_folder
from pneumo_edge.bundle import read_bundle
from pneumo_edge.errors import BundleError


def _write(folder: Path, word: str) -> None:
    with replacing_folder(folder) as temporary:
        (temporary / "one").write_text(word)
        (temporary / "inner").mkdir()
        (temporary / "inner" / "two").write_text(word)


def _words(folder: Path) -> list[str]:
    return [(folder / "one").read_text(), (folder / "inner" / "two").read_text()]


@pytest.mark.parametrize("exchange", [True, False], ids=["in one step", "in two steps"])
def test_a_folder_is_replaced_whole(exchange: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    _write(tmp_path / "bundle", "old")
    _write(tmp_path / "bundle", "new")
    assert _words(tmp_path / "bundle") == ["new", "new"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_links_and_pipes_in_a_folder_are_left_alone(tmp_path: Path) -> None:
    if not hasattr(os, "mkfifo"):
        pytest.skip("this system has no pipes among its files")
    with replacing_folder(tmp_path / "root") as temporary:
        (temporary / "mtab").symlink_to("/proc/self/mounts")
        os.mkfifo(temporary / "pipe")
    assert sorted(p.name for p in (tmp_path / "root").iterdir()) == ["mtab", "pipe"]


def test_an_error_leaves_the_old_folder(tmp_path: Path) -> None:
    _write(tmp_path / "bundle", "old")
    with pytest.raises(ValueError, match="full"), replacing_folder(tmp_path / "bundle") as temporary:
        (temporary / "one").write_text("new")
        raise ValueError("full")
    assert _words(tmp_path / "bundle") == ["old", "old"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    _write(tmp_path / "bundle", "old")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path.name.endswith(".tmp"):
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        _write(tmp_path / "bundle", "new")
    assert _words(tmp_path / "bundle") == ["old", "old"]


def test_there_is_no_moment_without_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    _write(folder, "0")
    (tmp_path / "other").mkdir()
    if not atomic._exchange(tmp_path / "other", folder):
        pytest.skip("this system cannot exchange two names in one step")
    assert atomic._exchange(tmp_path / "other", folder)
    gone: list[int] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            if not folder.exists():
                gone.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for i in range(20):
        _write(folder, str(i))
    done.set()
    watcher.join()
    assert not gone


@pytest.mark.skipif(sys.platform == "win32", reason="kills as Unix does")
@pytest.mark.parametrize("before", [True, False], ids=["with an old bundle", "without"])
def test_a_killed_process_leaves_nothing_that_looks_like_a_bundle(before: bool, tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    if before:
        _write(folder, "old")
    code = f"""
import os, signal
from pathlib import Path
from pneumo_edge.atomic import replacing_folder
with replacing_folder(Path({str(folder)!r})) as temporary:
    (temporary / "model.onnx").write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (p for p in tmp_path.iterdir() if p != folder)
    assert left.name.startswith(".bundle.")
    with pytest.raises(BundleError):
        read_bundle(left)
    if before:
        assert _words(folder) == ["old", "old"]
    else:
        assert not folder.exists()
    _write(folder, "new")
    assert left.exists(), "another process may be at work on it"
    long_ago = time.time() - 100_000
    os.utime(left, (long_ago, long_ago))
    _write(folder, "newer")
    assert _words(folder) == ["newer", "newer"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]
