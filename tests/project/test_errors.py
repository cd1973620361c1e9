"""Errors travel: out of a pool of processes each comes as it was raised. And one of the system's becomes a sentence."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import multiprocessing
import os
import pickle
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

import pneumo_bench
import pneumo_edge
import pneumo_export
import pneumo_train
from pneumo_edge.errors import MissingExtraError, PneumoError


def modules() -> Iterator[ModuleType]:
    """All of the tree that can be imported here: the rest needs an extra that is not installed."""
    for package in (pneumo_edge, pneumo_train, pneumo_export, pneumo_bench):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            with contextlib.suppress(ImportError):
                yield importlib.import_module(found.name)


def errors() -> list[type[Exception]]:
    classes = (
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Exception) and value.__module__ == module.__name__
    )
    return sorted(set(classes), key=lambda each: (each.__module__, each.__name__))


def test_every_error_of_the_tree_survives_pickling() -> None:
    found = errors()
    assert {PneumoError, MissingExtraError, *PneumoError.__subclasses__()} <= set(found)
    for kind in found:
        # Where a class has no __init__ of its own, that of Exception takes one text as well as several.
        own = inspect.isfunction(kind.__init__)
        needed = [p for p in inspect.signature(kind.__init__).parameters.values() if p.default is p.empty][1:]
        error = kind(*(f"text {i}" for i in range(len(needed) if own else 1)))
        error.add_note("a note")
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            again = pickle.loads(pickle.dumps(error, protocol))  # noqa: S301 - our own bytes
            assert type(again) is kind
            assert (str(again), again.args, again.__notes__) == (str(error), error.args, error.__notes__)


def _needs_a_package(_: int) -> None:
    raise MissingExtraError("pydicom", "dicom", "reading this")


def test_a_missing_package_comes_out_of_a_pool() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        waiting = pool.map_async(_needs_a_package, [1])
        with pytest.raises(MissingExtraError, match=r"reading this needs .* pydicom: pip install 'pneumo\[dicom\]'"):
            waiting.get(timeout=600)


@pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")
def test_a_process_that_may_start_no_thread_says_so() -> None:
    code = """
import os, resource, threading
import typer
from pneumo_edge.command_line import run
app = typer.Typer()

@app.command()
def starts_a_thread() -> None:
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    if os.getuid() == 0:
        os.setuid(65534)  # for root there is no limit
    threading.Thread(target=print).start()

run(app, "pneumo-test")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("pneumo-test: no thread can be started: ")


@pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")
def test_a_user_without_home_is_told_what_to_set() -> None:
    """Libraries ask for it when they are imported, kagglehub among them."""
    code = """
import pathlib, pwd
import typer
from pneumo_edge.command_line import run
app = typer.Typer()

def nobody(_):
    raise KeyError("uid not found")

@app.command()
def looks_for_its_home() -> None:
    pwd.getpwuid = nobody
    pathlib.Path.home()

run(app, "pneumo-test")
"""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    line = [sys.executable, "-c", code]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert done.stderr == "pneumo-test: this user has no home folder: set HOME to a folder that it can write in\n"
