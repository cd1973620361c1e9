"""What train and export find on a machine: Keras set up otherwise, names in other encodings, users without a home."""

from __future__ import annotations

import importlib.util
import json
import os
import pwd
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pneumo_bench.output import save
from pneumo_edge.errors import UsageError
from pneumo_train.surroundings import cache_folder, check_path

needs_keras = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("keras", "tensorflow", "sklearn", "matplotlib", "tf2onnx")),
    reason="needs the extras train and export",
)
TRAIN = ("pneumo_train", "--data", "nowhere")
EXPORT = ("pneumo_export", "nowhere")


def start(command: tuple[str, ...], home: Path, backend: str | None = None, cwd: Path | None = None) -> str:
    """Starts a command that cannot start; returns what it says of that."""
    environment = {k: v for k, v in os.environ.items() if k != "KERAS_BACKEND"} | {"KERAS_HOME": str(home)}
    environment |= {"KERAS_BACKEND": backend} if backend else {}
    line = [sys.executable, "-c", f"from {command[0]}.cli import main; main()", *command[1:]]
    done = subprocess.run(line, env=environment, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert not done.stdout
    assert "Traceback" not in done.stderr
    # TensorFlow may have said something first, of drivers and processors.
    return done.stderr.splitlines()[-1]


@needs_keras
@pytest.mark.parametrize(
    ("command", "settings", "words"),
    [
        (TRAIN, {"backend": "nonsense"}, "keras.json asks for nonsense: set KERAS_BACKEND=tensorflow"),
        (TRAIN, {"backend": "numpy"}, "training needs Keras on tensorflow or jax or torch, and"),
        (EXPORT, {"backend": "jax"}, "exporting needs Keras on tensorflow, and"),
        (TRAIN, {"image_data_format": "channels_first"}, "keras.json sets image_data_format to channels_first"),
        (EXPORT, {"image_data_format": "channels_first"}, "keras.json sets image_data_format to channels_first"),
        (TRAIN, {"floatx": "float16"}, "keras.json sets floatx to float16, and the networks are float32"),
        (EXPORT, {"floatx": "float64"}, "keras.json sets floatx to float64, and the networks are float32"),
        (TRAIN, {"floatx": "int8"}, "keras.json sets floatx to int8, and the networks are float32"),
    ],
)
def test_keras_set_up_otherwise_is_a_sentence(
    command: tuple[str, ...], settings: dict[str, str], words: str, tmp_path: Path
) -> None:
    (tmp_path / "keras.json").write_text(json.dumps(settings), encoding="utf-8")
    said = start(command, tmp_path)
    assert words in said
    assert str(tmp_path) in said


@needs_keras
@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is there")
def test_a_backend_that_is_not_there_is_a_sentence(tmp_path: Path) -> None:
    assert start(TRAIN, tmp_path, "torch").endswith(
        "Keras is to run on torch (KERAS_BACKEND), which is not installed: "
        "install it, or choose another with KERAS_BACKEND"
    )
    assert "exporting needs Keras on tensorflow, and KERAS_BACKEND asks for torch" in start(EXPORT, tmp_path, "torch")


@needs_keras
def test_what_keras_itself_refuses_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "keras.json").write_text('{"epsilon": "small"}', encoding="utf-8")
    code = (
        "from pneumo_edge.errors import UsageError; from pneumo_train.surroundings import load_keras\n"
        "try: load_keras()\n"
        "except UsageError as error: print(error)"
    )
    environment = os.environ | {"KERAS_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    [said] = done.stdout.splitlines()
    assert said.startswith("Keras cannot start on tensorflow (Invalid `epsilon`")
    assert f"delete {tmp_path / 'keras.json'}" in said


# ----------------------------------------------------------------------------------------------------------- names


@given(st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & set(b"/\0")))
def test_a_path_is_taken_just_where_it_is_utf8(name: bytes) -> None:
    try:
        name.decode()
    except UnicodeDecodeError:
        with pytest.raises(UsageError, match="no UTF-8") as caught:
            check_path(os.fsdecode(name), "--data")
        assert str(caught.value).isascii()
    else:
        check_path(os.fsdecode(name), "--data")


@needs_keras
@pytest.mark.parametrize("where", ["data", "output", "cwd", "link", "run"])
def test_a_latin1_folder_is_a_sentence_before_training(where: str, tmp_path: Path) -> None:
    latin1 = Path(os.fsdecode(os.fsencode(tmp_path) + b"/r\xf6ntgen"))
    try:
        (latin1 / "train").mkdir(parents=True)
    except OSError:
        pytest.skip("this file system takes UTF-8 names alone")
    (tmp_path / "link").symlink_to(latin1)
    command, cwd = {
        "data": (("pneumo_train", "--data", str(latin1)), tmp_path),
        "output": (("pneumo_train", "--data", "phantom", "--output", str(latin1 / "run")), tmp_path),
        "cwd": (("pneumo_train", "--data", "phantom"), latin1),
        "link": (("pneumo_train", "--data", str(tmp_path / "link")), tmp_path),
        "run": (("pneumo_export", str(latin1)), tmp_path),
    }[where]
    said = start(command, tmp_path, cwd=cwd)
    assert "has bytes in its name that are no UTF-8" in said
    assert r"r\udcf6ntgen" in said


def test_a_benchmark_that_names_a_latin1_folder_is_written(tmp_path: Path) -> None:
    save(tmp_path, "latency", {"made": "today", "command": "pneumo-bench latency --model r\udcf6ntgen"}, [])
    assert r"--model r\udcf6ntgen" in (tmp_path / "latency.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "latency.json").read_text(encoding="utf-8"))["command"].endswith("r\udcf6ntgen")


# ---------------------------------------------------------------------------------------------------------- a home


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's own among the temporary files, for somebody without XDG_CACHE_HOME."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"pneumo-{os.getuid()}"


def test_a_user_without_home_keeps_films_among_temporary_files(
    temporary: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nobody(_: int) -> None:
        raise KeyError("getpwuid(): uid not found: 12345")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert cache_folder() == cache_folder() == temporary
    assert temporary.stat().st_mode & 0o777 == 0o700
    [said] = capsys.readouterr().err.splitlines()  # once
    assert str(temporary) in said
    assert "XDG_CACHE_HOME" in said


def test_a_node_without_home_asks_for_a_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a clinic sent must not lie among temporary files."""
    from pneumo_edge.serve.cli import _state_folder

    def nobody(_: int) -> None:
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(UsageError, match=r"no home folder .*: give --spool DIR"):
        _state_folder()


def test_a_home_that_cannot_be_written_in_is_passed_over(
    temporary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))  # where not even root can make a folder
    assert cache_folder() == temporary


def test_what_belongs_to_somebody_else_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", os.devnull)
    (temporary.parent / "elsewhere").mkdir()
    temporary.symlink_to(temporary.parent / "elsewhere")
    with pytest.raises(UsageError, match="set XDG_CACHE_HOME"):
        cache_folder()
    temporary.unlink()
    temporary.mkdir()
    real = os.getuid()
    temporary.rename(temporary.with_name(f"pneumo-{real + 1}"))
    monkeypatch.setattr(os, "getuid", lambda: real + 1)
    with pytest.raises(UsageError, match=f"pneumo-{real + 1} cannot be used"):
        cache_folder()
