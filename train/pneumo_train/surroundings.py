"""Checks of the machine before training or export begins: the settings of Keras, the names of paths, and the folder for
prepared films."""

from __future__ import annotations

import json
import os
import tempfile
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pneumo_edge.command_line import say
from pneumo_edge.errors import UsageError, one_line

TRAINS = ("tensorflow", "jax", "torch")
"""Backends of Keras that can train: its others only answer."""


def check_keras(backends: tuple[str, ...], purpose: str) -> None:
    """Checks that the user's settings of Keras let it do what is asked, without importing it, which takes seconds.

    The rules are Keras's own (`keras/src/backend/config.py`): KERAS_BACKEND comes before `backend` in keras.json, which
    lies in $KERAS_HOME or ~/.keras.

    Args:
        backends: Backends that will do.
        purpose: Name of the task in errors, such as "training".

    Raises:
        UsageError: Another backend is set, one that is not there, or a layout or precision that the networks have not.
    """
    file = _keras_json()
    settings = _settings(file)
    backend, source = _backend(settings, file)
    if backend not in backends:
        raise UsageError(
            f"{purpose} needs Keras on {' or '.join(backends)}, and {source} asks for {backend}: "
            f"set KERAS_BACKEND={backends[0]}"
        )
    if find_spec(backend) is None:
        raise UsageError(
            f"Keras is to run on {backend} ({source}), which is not installed: "
            "install it, or choose another with KERAS_BACKEND"
        )
    layout = settings.get("image_data_format", "channels_last")
    if layout != "channels_last":
        raise UsageError(
            f"{file} sets image_data_format to {layout}, and the networks are channels_last: "
            "set that there, or delete the file"
        )
    precision = settings.get("floatx", "float32")
    if precision != "float32":
        raise UsageError(
            f"{file} sets floatx to {precision}, and the networks are float32: set that there, or delete "
            "the file (--mixed-precision trains in bfloat16)"
        )


def load_keras() -> None:
    """Imports Keras and its backend, which takes seconds: after all checks that need neither.

    Raises:
        UsageError: It cannot be imported as it is installed or set up.
    """
    try:
        import keras  # noqa: F401 - so that a fault of it is met here
    except Exception as error:
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise
        file = _keras_json()
        backend, _ = _backend(_settings(file), file)
        raise UsageError(
            f"Keras cannot start on {backend} ({one_line(error)}): install that package again, "
            f"choose another with KERAS_BACKEND, or delete {file} if it is there"
        ) from error


def _keras_json() -> Path:
    home = os.environ.get("KERAS_HOME")
    if home is None:
        base = os.path.expanduser("~")  # noqa: PTH111 - Path.home() raises where there is none
        home = f"{base if os.access(base, os.W_OK) else '/tmp'}/.keras"  # noqa: S108 - so does Keras
    return Path(home) / "keras.json"


def _settings(file: Path) -> dict[str, Any]:
    """Returns what keras.json says; nothing where there is none, or none that Keras could read."""
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _backend(settings: dict[str, Any], file: Path) -> tuple[str, str]:
    """Returns the backend that Keras will take, and what says so."""
    from_environment = os.environ.get("KERAS_BACKEND")
    if from_environment:
        return from_environment, "KERAS_BACKEND"
    if "backend" in settings:
        return str(settings["backend"]), str(file)
    return "tensorflow", "the default"


def check_path(path: str | Path, what: str) -> None:
    """Checks that a path can stand in the files of a run, which are UTF-8.

    Args:
        path: A file or folder, there or not.
        what: Name of the path in errors, such as an option.

    Raises:
        UsageError: Its name holds other bytes.
    """
    # Python puts bytes of a name that are no UTF-8 into lone surrogates.
    for name in (os.fspath(path), os.path.abspath(path), os.path.realpath(path)):  # noqa: PTH100 - with its links
        if any("\ud800" <= c <= "\udfff" for c in name):
            raise UsageError(
                f"{what}: {name!a} has bytes in its name that are no UTF-8, as old archives and disks leave them: "
                "rename that folder"
            )


def cache_folder() -> Path:
    """Returns where prepared films are kept: `$XDG_CACHE_HOME/pneumo`, by default `~/.cache/pneumo`.

    Where there is no home folder, or none that can be written in, it is a folder of the user's own among the temporary
    files, and a line says so.

    Raises:
        UsageError: That folder belongs to somebody else.
    """
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "pneumo"
    folder = Path(os.path.expanduser("~")) / ".cache" / "pneumo"  # noqa: PTH111 - Path.home() raises where there is none
    if folder.is_absolute() and _can_write(folder):
        return folder
    user = os.getuid() if hasattr(os, "getuid") else "user"
    folder = Path(tempfile.gettempdir()) / f"pneumo-{user}"
    if not _can_write(folder) or not _ours(folder):
        raise UsageError(f"{folder} cannot be used for prepared films: set XDG_CACHE_HOME to a folder of your own")
    _say_once(f"no home folder to keep prepared films in: they are in {folder} (XDG_CACHE_HOME chooses another)")
    return folder


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _ours(folder: Path) -> bool:
    """Among the temporary files anybody may have made it first, or a link in its place."""
    state = folder.lstat()
    return not folder.is_symlink() and (not hasattr(os, "getuid") or state.st_uid == os.getuid())


@lru_cache
def _say_once(text: str) -> None:
    say(text)
