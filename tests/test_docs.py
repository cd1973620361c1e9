"""README and docs say what is so: commands, links and figures."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from pneumo_train.phantom import draw_phantoms

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
COMMANDS = {
    "pneumo-train": "train",
    "pneumo-export": "export",
    "pneumo-infer": "edge",
    "pneumo-serve": "edge.serve",
    "pneumo-archive": "edge.archive",
    "pneumo-bench": "bench",
}


# ---------------------------------------------------------------------------------------------------- figures

_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_SOURCE = re.compile(r"\s*(\S+\.json): (.+?) (\S*\{[^{}]*\}\S*)(?: x (\S+)| (inverse))?\s*")
"""FILE: KEYS FORMAT, then `x FACTOR`, `inverse` or nothing."""
_KEY = re.compile(r"\[([^\]]*)\]|([^.\[\]]+)")


def stated_and_found(text: str, root: Path) -> Iterator[tuple[str, str]]:
    """Yields each figure that a comment follows, as far as it should be, and what the file holds.

    A comment that speaks of docs/results/ and cannot be followed raises an error that a reader understands.
    """
    for comment in _COMMENT.finditer(text):
        if "docs/results/" not in comment[1]:
            continue
        source = _SOURCE.fullmatch(comment[1])
        if source is None:
            raise ValueError(f"not FILE: KEYS FORMAT: {comment[0]}")
        file, keys, form, factor, inverse = source.groups()
        value = look_up(json.loads((root / file).read_text(encoding="utf-8")), keys)
        value = 1 / value if inverse else value * float(factor) if factor else value
        shown = form.format(value)
        before = text[: comment.start()]
        # One character more: 10.994 does not end with 0.994.
        stated = before[-len(shown) - 1 :]
        yield (stated[1:] if not re.match(r"[\d.,−-]", stated) else stated), shown


def look_up(value: Any, keys: str) -> Any:
    """Follows `a.b[name=x, threads=1].c[key.with.dots]` into a JSON value."""
    for bracket, plain in _KEY.findall(keys):
        if isinstance(value, list):
            wanted = dict(pair.strip().split("=", 1) for pair in bracket.split(","))
            [value] = [each for each in value if all(str(each[key]) == text for key, text in wanted.items())]
        else:
            value = value[bracket or plain]
    return value


@pytest.fixture
def measured(tmp_path: Path) -> Path:
    folder = tmp_path / "docs" / "results" / "a"
    folder.mkdir(parents=True)
    rows = [{"name": "x/m.onnx", "threads": t, "ratio": {"median": t / 16}} for t in (1, 2)]
    record = {"auc": {"value": 0.9938}, "n": 1044, "rows": rows, "files": {"m.int8.onnx": {"bytes": 3_940_000}}}
    (folder / "m.json").write_text(json.dumps(record))
    return tmp_path


@pytest.mark.parametrize(
    ("figure", "source"),
    [
        ("AUC 0.994", "auc.value {:.3f}"),
        ("| 99.4 %", "auc.value {:.1f} x 100"),
        ("99.4%", "auc.value {:.1%}"),
        ("of 1,044", "n {:,}"),
        ("1/16.0", "rows[name=x/m.onnx, threads=1].ratio.median 1/{:.1f} inverse"),
        ("1/8.0", "rows[name=x/m.onnx, threads=2].ratio.median 1/{:.1f} inverse"),
        ("3.9", "files[m.int8.onnx].bytes {:.1f} x 1e-6"),
    ],
)
def test_a_figure_is_compared_with_its_file(figure: str, source: str, measured: Path) -> None:
    number = figure.removesuffix(" %")
    text = f"{number}<!-- docs/results/a/m.json: {source} --> and more"
    [(stated, found)] = stated_and_found(text, measured)
    assert stated == found
    wrong = re.sub(r"\d(?=\D*$)", lambda digit: str((int(digit[0]) + 1) % 10), number)
    [(stated, found)] = stated_and_found(text.replace(number, wrong, 1), measured)
    assert stated != found


def test_a_longer_number_is_another_number(measured: Path) -> None:
    for number in ("10.994", "-0.994"):
        [(stated, found)] = stated_and_found(f"{number}<!-- docs/results/a/m.json: auc.value {{:.3f}} -->", measured)
        assert stated != found


@pytest.mark.parametrize(
    ("comment", "error"),
    [
        ("docs/results/a/m.json auc.value", ValueError),
        ("docs/results/b/m.json: auc.value {:.3f}", FileNotFoundError),
        ("docs/results/a/m.json: auc.low {:.3f}", KeyError),
        ("docs/results/a/m.json: rows[name=x/m.onnx].ratio.median {:.1f}", ValueError),
    ],
)
def test_a_source_that_cannot_be_followed_is_an_error(comment: str, error: type[Exception], measured: Path) -> None:
    with pytest.raises(error):
        list(stated_and_found(f"0.994<!-- {comment} -->", measured))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_figure_with_a_source_is_that_of_the_file(page: Path) -> None:
    # What stands in code blocks is about the scheme.
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert [pair for pair in stated_and_found(text, ROOT) if pair[0] != pair[1]] == []


# -------------------------------------------------------------------------------------------- links and files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not re.match(r"\w+:", t) and not (page.parent / t).exists()] == []


def test_what_is_published_names_no_folder_of_a_machine_and_holds_no_film() -> None:
    # Of pneumo-serve's own addresses there may be talk.
    absolute = re.compile(r"(?:^|[\s\"'=(])(?:[A-Za-z]:\\|/(?!v1/)(?:[\w.-]+/)+[\w.-]*)", re.MULTILINE)
    assert absolute.search('"data": "/somewhere/films"')
    files = [path for path in (ROOT / "docs" / "results").rglob("*") if path.is_file()]
    texts = [path for path in files if path.suffix in {".json", ".md", ".csv"}]
    assert texts
    for path in texts:
        assert not absolute.search(path.read_text(encoding="utf-8")), path
    kept_back = {"predictions.csv", "split.csv", "report.html", "mistakes.png", "overlays.png", "augmentation.png"}
    assert [p for p in files if p.name in kept_back or p.suffix not in {".json", ".md", ".csv", ".png"}] == []


def test_the_picture_is_small() -> None:
    assert (ROOT / "docs" / "film.png").stat().st_size < 150_000


# --------------------------------------------------------------------------------------------------- commands


def command_lines(page: Path) -> list[list[str]]:
    """The command lines in the code blocks of a page that have no language, as lists of words."""
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    blocks = [block for language, block in fenced if not language]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    first = re.compile(r"(pneumo-\w+|make|pip|python)( |$)")
    return [shlex.split(line, comments=True) for line in lines if first.match(line)]


def commands() -> dict[str, Any]:
    from importlib import import_module

    packages = {name: f"pneumo_{package}.cli" for name, package in COMMANDS.items()}
    return {name: typer.main.get_command(import_module(module).app) for name, module in packages.items()}


def parse(name: str, arguments: list[str]) -> None:
    """Reads a command line as the command would; unknown options, bad values and missing arguments are errors."""
    command = commands()[name]
    # A command that has others may also be called by itself, with options at once.
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(name, list(arguments))


LINES = [(page.relative_to(ROOT).as_posix(), line) for page in PAGES for line in command_lines(page)]


@pytest.mark.parametrize(
    ("page", "line"), LINES, ids=lambda value: value if isinstance(value, str) else " ".join(value)
)
def test_every_command_is_one_that_we_have(page: str, line: list[str]) -> None:
    name, *arguments = line
    if name == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert arguments[0] in targets
        variables = [word.split("=")[0] for word in arguments[1:]]
        assert all(f"$({variable})" in (ROOT / "Makefile").read_text(encoding="utf-8") for variable in variables)
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
            "optional-dependencies"
        ]
        assert all(extra in extras for found in re.findall(r"\[(.*?)\]", line[-1]) for extra in found.split(","))
    elif name in COMMANDS:
        parse(name, arguments)
    else:
        pytest.fail(f"{name} is a command that this test does not know")


def test_a_renamed_option_is_noticed() -> None:
    parse("pneumo-bench", ["latency", "--threads", "1"])
    cases = {"--cores 1": "No such option", "--rounds 0": "not in the range", "--queries many": "not a valid int"}
    for arguments, words in cases.items():
        # Where typer has Click's exceptions from depends on its version.
        with pytest.raises(Exception, match=words):
            parse("pneumo-bench", ["latency", *arguments.split()])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize(
    ("target", "count"),
    [("demo", 5), ("results RUNS='runs/a runs/b' DATA=films BASELINE=x BASELINE_BARE=y", 6)],
)
def test_make_calls_commands_that_we_have(target: str, count: int) -> None:
    said = subprocess.run(
        ["make", "--dry-run", *shlex.split(target)], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    calls = re.findall(r"^\S*/(pneumo-\w+) (.*?)(?: >.*| \|\|.*)?$", said.replace("\\\n", " "), re.MULTILINE)
    assert len(calls) == count
    for name, arguments in calls:
        parse(name, shlex.split(arguments))


def test_make_results_publishes_no_absolute_path() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "results", "RUNS=/films/runs/a", "DATA=films"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "give relative paths" in done.stderr


def test_the_readme_has_commands_to_look_at() -> None:
    names = {line[0] for page, line in LINES if page == "README.md"}
    assert names == {*COMMANDS, "make", "pip"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_option_in_the_text_exists(page: Path) -> None:
    known = {"--help", "--version"}
    waiting = [*commands().values()]
    while waiting:
        command = waiting.pop()
        waiting += getattr(command, "commands", {}).values()
        known |= {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    code = re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8"))
    ours = [span for span in code if not re.search(r"\b(git|pip)\b", span)]
    named = {option for span in ours for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", span)}
    assert named - known == set()


# What makes a command quick: they are run as they stand in the README, with these words added.
QUICK = {
    "pneumo-train": ["--weights", "none", "--size", "32", "--epochs", "1"],
    "pneumo-export": ["--formats", "onnx"],
    "pneumo-infer": [],
    "pneumo-bench accuracy": [],
    "pneumo-bench latency": ["--threads", "1", "--queries", "10", "--rounds", "1"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README has it: chest_xray/ (phantoms) and film.png."""
    folder = tmp_path_factory.mktemp("readme")
    draw_phantoms(folder / "chest_xray", films=60)
    film = min((folder / "chest_xray" / "test" / "PNEUMONIA").iterdir())
    from PIL import Image

    with Image.open(film) as picture:
        picture.save(folder / "film.png")
    return folder


def run(line: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Runs one of our commands, or lines of Python: `["python", LINES]`."""
    name, *arguments = line
    sources = os.pathsep.join(str(ROOT / part) for part in ("train", "export", "edge_runtime", "benchmarks"))
    environment = os.environ | {"XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": sources}
    entry = f"from pneumo_{COMMANDS[name]}.cli import main; main()" if name in COMMANDS else arguments.pop(0)
    return subprocess.run(
        [sys.executable, "-c", entry, *arguments],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def test_the_first_command_answers(home: Path) -> None:
    done = run(["pneumo-infer", "film.png"], home)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"film\.png: (PNEUMONIA|NORMAL|no verdict).*\n", done.stdout)


def test_the_lines_of_python_run(home: Path) -> None:
    [code] = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    done = run(["python", code], home)
    assert done.returncode == 0, done.stderr
    assert re.match(r"(PNEUMONIA|NORMAL|None) 0\.\d+", done.stdout)


def test_the_commands_on_the_real_set_run_on_phantoms(home: Path) -> None:
    pytest.importorskip("tensorflow", reason="training and export need TensorFlow")
    pytest.importorskip("tf2onnx", reason="the export needs tf2onnx")
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## The four commands on the real set")[1]
    block = re.split(r"^```", section, flags=re.MULTILINE)[1]
    lines = [shlex.split(line) for line in block.strip().splitlines()]
    assert [" ".join(line[:2]) if line[0] == "pneumo-bench" else line[0] for line in lines] == list(QUICK)
    for line, added in zip(lines, QUICK.values(), strict=True):
        done = run([*line, *added], home)
        # One epoch from random weights: the gate may refuse a file, which is an answer; the others go on.
        refused = line[0] == "pneumo-export" and (home / "runs" / "first" / "bundle" / "model.json").is_file()
        assert done.returncode == 0 or (refused and done.returncode == 1), f"{line}: {done.stderr}"
    assert any((home / "heatmaps").glob("*.png"))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_takes_the_unit_for_pneumo_serve(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "serve.md").read_text(encoding="utf-8")
    [unit] = re.findall(r"^```ini\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    [line] = re.findall(r"^ExecStart=((?:.*\\\n)*.*)$", unit, re.MULTILINE)
    command, *arguments = shlex.split(line.replace("\\\n", " "))
    parse("pneumo-serve", arguments)
    # It need not be installed where the page wants it.
    path = tmp_path / "pneumo-serve.service"
    path.write_text(unit.replace(command, sys.executable), encoding="utf-8")
    verified = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", path], capture_output=True, text=True, check=False
    )
    assert (verified.returncode, verified.stderr) == (0, "")
