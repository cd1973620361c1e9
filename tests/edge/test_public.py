"""What `import pneumo_edge` offers: everything that a program needs, and nothing heavy before it is asked for."""

from __future__ import annotations

import re
import subprocess
import sys
import typing
from dataclasses import fields
from importlib.metadata import version
from inspect import signature

import pytest

import pneumo_edge
from pneumo_edge import classifier, errors, region


@pytest.mark.parametrize("name", pneumo_edge.__all__)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    assert name in dir(pneumo_edge)
    found = getattr(pneumo_edge, name)
    assert name == "__version__" or (found.__name__ == name and found.__doc__)


def test_every_error_is_public() -> None:
    tree = {name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)}
    assert tree <= set(pneumo_edge.__all__)


def test_what_a_classifier_returns_is_public() -> None:
    methods = (pneumo_edge.Classifier.predict, pneumo_edge.Classifier.predict_batch)
    types = [str(signature(method).return_annotation) for method in methods]
    types += [str(each.type) for answer in (classifier.Prediction, classifier.Failure) for each in fields(answer)]
    named = {name for text in types for name in re.findall(r"[A-Z]\w+", text)}
    ours = {name for name in named if name in vars(classifier) | vars(region) and name not in vars(typing)}
    assert {"Prediction", "Failure", "Region"} <= ours <= set(pneumo_edge.__all__)


def test_help_shows_the_classifier() -> None:
    lines = "import pneumo_edge; help(pneumo_edge)"
    text = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True).stdout
    for words in ("class Classifier", "class Prediction", "class PneumoError", "predict_batch("):
        assert words in text, words


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Clasifier'"):
        _ = pneumo_edge.Clasifier


def test_importing_it_imports_nothing_heavy() -> None:
    lines = "import sys, pneumo_edge; dir(pneumo_edge); print([m for m in ('numpy', 'PIL') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_there_is_one_version() -> None:
    assert version("pneumo") == pneumo_edge.__version__
