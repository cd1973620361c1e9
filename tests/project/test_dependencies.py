"""What is imported is declared, what is declared is used, and constraints.txt has a version for it that is allowed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import ROOT

packaging_requirements = pytest.importorskip("packaging.requirements", reason="packaging comes with pytest")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}

FOLDERS = {
    "train": ("", "train"),
    "export": ("", "export"),
    "benchmarks": ("", "all"),
    "edge_runtime/pneumo_edge/serve": ("", "serve"),
    "edge_runtime/pneumo_edge/archive": ("", "archive"),
    "edge_runtime": ("", "onnx", "tflite", "dicom"),
    "tests": ("", "all", "dev"),
}
"""Folder -> extras whose packages may be imported there; a file belongs to the first folder that holds it."""

DISTRIBUTIONS = {"PIL": "pillow", "gdcm": "python-gdcm", "sklearn": "scikit-learn"}
"""Modules that are named otherwise than what brings them."""

OURS = {"pneumo_edge", "pneumo_train", "pneumo_export", "pneumo_bench"}

NOT_IMPORTED = {
    "axe-playwright-python": "is a file of JavaScript",
    "bokeh": "draws Dask's dashboard",
    "build": "makes the wheel",
    "import-linter": "is a command",
    "jax": "is a backend of Keras",
    "mkdocs-material": "is a theme",
    "mypy": "is a command",
    "pytest-cov": "is a plugin of pytest",
    "pytest-xdist": "is a plugin of pytest",
    "python-multipart": "reads the forms of FastAPI",
    "ruff": "is a command",
}


def declared(extra: str) -> set[str]:
    """Names of the distributions that an extra brings, those of the extras that it names included."""
    names = set()
    for text in EXTRAS[extra]:
        requirement = packaging_requirements.Requirement(text)
        if requirement.name == "pneumo":
            names |= {name for each in requirement.extras for name in declared(each)}
        else:
            names.add(requirement.name)
    return names


def imported(source: str) -> set[str]:
    """Distributions whose modules a file imports, by name too, wherever in the file it does."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules.add(node.module or "")
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "importorskip"}:
                modules.add(str(node.args[0].value))
    heads = {module.split(".")[0] for module in modules} - OURS - set(sys.stdlib_module_names)
    return {DISTRIBUTIONS.get(head, head.replace("_", "-")) for head in heads}


def files() -> Iterator[tuple[str, Path]]:
    seen: set[Path] = set()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path not in seen:
                seen.add(path)
                yield folder, path


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import os, sklearn.linear_model\ndef f():\n    from PIL import Image\n    from . import near\n"
    assert imported(source + "    x = pytest.importorskip('onnx.reference')\n") == {"scikit-learn", "pillow", "onnx"}


def test_what_is_imported_is_declared() -> None:
    # Tests import one another's helpers by their file's name.
    helpers = {path.stem.replace("_", "-") for path in (ROOT / "tests").glob("*.py")}
    missing = {}
    for folder, path in files():
        allowed = helpers.union(*map(declared, FOLDERS[folder]))
        if lacking := imported(path.read_text(encoding="utf-8")) - allowed:
            missing[str(path.relative_to(ROOT))] = lacking
    assert missing == {}


def test_what_is_declared_is_used() -> None:
    used = set().union(*(imported(path.read_text(encoding="utf-8")) for _, path in files()))
    all_declared = set().union(*map(declared, EXTRAS))
    assert all_declared - used - set(NOT_IMPORTED) == set()
    assert set(NOT_IMPORTED) <= all_declared - used


def test_the_constraints_have_an_allowed_version_of_each() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    versions = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pins.items()}
    for text in [text for texts in EXTRAS.values() for text in texts]:
        requirement = packaging_requirements.Requirement(text)
        if requirement.name != "pneumo":
            assert requirement.specifier.contains(versions[requirement.name]), f"{text}: call make constraints"
