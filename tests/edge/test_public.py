"""What `import pneumo_edge` offers: everything that a program needs, and nothing heavy before it is asked for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import typing
from dataclasses import fields, is_dataclass
from importlib.metadata import version
from inspect import cleandoc, getsource, signature

import numpy as np
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


@pytest.mark.parametrize("name", [n for n in pneumo_edge.__all__ if is_dataclass(getattr(pneumo_edge, n))])
def test_every_public_field_has_a_text(name: str) -> None:
    (found,) = ast.parse(cleandoc(getsource(getattr(pneumo_edge, name)))).body
    assert isinstance(found, ast.ClassDef)
    for field, text in zip(found.body, [*found.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            said = text.value if isinstance(text, ast.Expr) else None
            assert isinstance(said, ast.Constant) and str(said.value).strip(), ast.unparse(field)


def test_answers_can_be_hashed() -> None:
    outline = region.Region((((0.0, 0.0), (1.0, 0.0), (0.0, 1.0)),), 0.5, 0.9, 1, 1)

    def answer(milliseconds: float) -> classifier.Prediction:
        return classifier.Prediction(
            "film.png", "PNEUMONIA", 0.9, 2.2, 0.5, "balanced", 0.2, 0.1, True, ("a warning",), "model", "model.onnx",
            50.0, outline, {"read": milliseconds}, np.zeros((2, 2), np.float32),
        )  # fmt: skip

    assert hash(answer(1.0)) == hash(answer(1.0))
    assert answer(1.0) == answer(1.0) != answer(2.0)
    assert len({answer(1.0), answer(1.0), classifier.Failure("film.png", "film.png is empty")}) == 2


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
