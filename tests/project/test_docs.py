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
from pathlib import Path
from typing import Any

import pytest
import typer

from places import ROOT
from pneumo_bench.readme import fill
from pneumo_edge.errors import RunError, UsageError
from pneumo_train.phantom import draw_phantoms
from tiny_backbone import draw_films, with_tiny_backbone

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
COMMANDS = {name: entry.removesuffix(":main") for name, entry in SCRIPTS.items()}
"""The module of each installed command."""


# ----------------------------------------------------------------------------------------------------- tables


def interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.01, "high": value + 0.005}


def measures(auc: float, films: int) -> dict[str, Any]:
    point = {name: interval(auc - 0.1) for name in ("accuracy", "sensitivity", "specificity")}
    return {"n": films, "auc": interval(auc), "ece": interval(0.05), "operating_points": {"balanced": point}}


def publish(results: Path, runs: dict[str, dict[str, Any]]) -> None:
    """Adds finished runs to a folder of results, as the first: name -> what differs in their metrics."""
    for name, metrics in runs.items():
        (results / name).mkdir(parents=True)
        (results / name / "config.json").write_text(json.dumps({"backbone": "net", "head": "gap", "size": 32}))
        (results / name / "metrics.json").write_text(json.dumps({"test": None} | metrics))
    listed = results / "results.json"
    before = json.loads(listed.read_text())["runs"] if listed.is_file() else {}
    listed.write_text(json.dumps({"runs": {name: {} for name in runs} | before}))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Results of one run on one site, exported and timed, and of one whose test films were never measured."""
    folder = tmp_path / "docs" / "results"
    publish(folder, {"unmeasured": {}, "one": {"test": measures(0.987, 1624)}})
    (folder / "one" / "parity.json").write_text(json.dumps({"files": {"model.int8.onnx": {"bytes": 3_940_000}}}))
    name = "net-gap-32/model.int8.onnx"
    rows = [
        {"name": name, "threads": t, "bytes": 3_940_000, "p50_ratio": {"median": t / 16}, "p50_ms": {"median": 3.6 / t}}
        for t in (1, 2)
    ]
    timed = json.dumps({"results": rows, "machine": {"processor": "Intel(R) Xeon(R) Processor"}})
    cold = {"name": name, "mode": "cold", "peak_rss": {"median": 85_200_000}}
    install = {"total": 170_400_000, "onnxruntime": 75_600_000, "numpy": 57_000_000, "pillow": 20_000_000}
    end_to_end = {"results": [cold, cold | {"mode": "warm"}], "install": install}
    (folder / "bench").mkdir()
    (folder / "bench" / "latency.json").write_text(timed)
    (folder / "engines" / "native").mkdir(parents=True)
    (folder / "engines" / "native" / "latency.json").write_text(timed)
    (folder / "engines" / "native" / "end-to-end.json").write_text(json.dumps(end_to_end))
    return folder


def page(*names: str) -> str:
    return "".join(f"Before.\n<!-- table: {name} -->\nold\n<!-- end of table -->\nAfter.\n" for name in names)


def test_tables_are_made_from_the_files_and_the_rest_stays(results: Path) -> None:
    filled = fill(page("accuracy", "footprint", "models"), results)
    assert filled.count("Before.") == filled.count("After.") == 3
    assert "old" not in filled
    assert "| 1,624 | 0.987 (0.977 to 0.992) | 0.887 (0.877 to 0.892) |" in filled
    assert "[one](results/one/metrics.json) | net-gap-32 | 0.987" in filled
    assert "| 3.9 MB | 1/16.0 |" in filled
    assert "unmeasured" not in filled
    for figure in (
        "| 3.9 MB |",
        "Intel Xeon | 3.6 ms |",
        "| 85 MB |",
        "| 170 MB |",
        "(onnxruntime 76, numpy 57, pillow 20)",
    ):
        assert figure in filled
    assert fill(filled, results) == filled
    code = f"```html\n{page('accuracy')}```\n"
    assert fill(code, results) == code
    assert fill(filled.replace("0.987", "0.988", 1), results) == filled


def test_runs_on_several_sites_come_first_and_sites_not_seen_stand_apart(results: Path) -> None:
    sites = {"rsna": measures(0.95, 300), "elsewhere": measures(0.91, 200)}
    test = measures(0.999, 500) | {"sites": sites, "mean": measures(0.93, 500)}
    runs = {name: {"test": test, "left_out": left} for name, left in {"without": measures(0.8, 9), "all": None}.items()}
    publish(results, runs)
    (results / "sites").mkdir()
    left_out = [{"site": "rsna", "one_class": None, "measures": measures(0.8, 300)}]
    alone = {"n": 70, "right": {"balanced": interval(0.6)}}
    left_out.append({"site": "healthy", "one_class": alone, "measures": None})
    mean = {"auc": interval(0.75)} | measures(0.75, 0)["operating_points"]["balanced"]
    settings = {"backbone": "net", "head": "gap", "size": 32, "epochs": 1, "limit": None}
    record = {"results": left_out, "mean": mean, "settings": settings}
    (results / "sites" / "sites.json").write_text(json.dumps(record))
    [accuracy] = re.findall(r"Before.\n(.*)After", fill(page("accuracy"), results), re.DOTALL)
    rows = [line.split(" | ") for line in accuracy.splitlines() if line.startswith("| ")][2:]
    assert [(row[0], row[1], row[2].split()[0]) for row in rows] == [
        ("| RSNA: adults, NIH Clinical Center", "300", "0.950"),
        ("| elsewhere", "200", "0.910"),
        ("| **mean over the sites**", "500", "0.930"),
        ("| RSNA: adults, NIH Clinical Center, not seen in training", "300", "0.800"),
        ("| healthy, not seen in training", "70", "–"),
        ("| **mean over sites not seen in training**", "300", "0.750"),
    ]
    models = fill(page("models"), results)
    assert models.index("Trained on several") < models.index("results/all/") < models.index("Trained on one site")
    assert models.index("Trained on one site") < models.index("results/one/")
    assert "[all](results/all/metrics.json) | net-gap-32 | 0.930" in models
    assert "without" not in models


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (page("accurracy"), "no table accurracy"),
        ("<!-- table: models -->\nold\n", "needs both its lines"),
        ("old\n<!-- end of table -->\n", "needs both its lines"),
        ("<!-- table: two words -->\nold\n<!-- end of table -->\n", "needs both its lines"),
    ],
)
def test_a_table_that_nobody_would_make_is_an_error(text: str, words: str, results: Path) -> None:
    with pytest.raises(UsageError, match=words):
        fill(text, results)


@pytest.mark.parametrize(
    "file", ["results.json", "one/metrics.json", "engines/native/latency.json", "engines/native/end-to-end.json"]
)
def test_results_that_are_missing_or_damaged_are_named(file: str, results: Path) -> None:
    names = ("accuracy", "footprint")
    for content in ('{"results": [], "runs": {"none": {}}}', "{}", "[", None):
        (results / file).unlink() if content is None else (results / file).write_text(content)
        with pytest.raises(RunError, match="call make results"):
            fill(page(*names), results)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_table_is_that_of_the_files(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert fill(text) == text, "call make tables"


def test_the_figures_of_the_readme_stand_in_tables() -> None:
    """Measured figures outside of them would be compared with nothing."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"<!-- table: (\S+) -->", text) == ["accuracy", "footprint"]
    prose = re.sub(
        r"<!-- table:.*?<!-- end of table -->|```.*?```|`.*?`|\]\(.*?\)|http\S+|95 % intervals",
        "",
        text,
        flags=re.DOTALL,
    )
    figures = re.findall(r"\d[\d,]*\.\d+|\d+ ?%|\d+ ?MB", prose)
    # Versions of Python and of the licence.
    assert [figure for figure in figures if not re.fullmatch(r"3\.1\d|[24]\.0", figure)] == []


# -------------------------------------------------------------------------------------------- links and files


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)\s#]+)", page.read_text(encoding="utf-8"))
    assert [t for t in targets if not re.match(r"\w+:", t) and not (page.parent / t).exists()] == []


def test_what_contributing_names_is_there() -> None:
    """Files, and names within them: what moves must move there too."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    folders = ("train", "export", "edge_runtime", "benchmarks", "tests")
    sources = {path: path.read_text(encoding="utf-8") for folder in folders for path in (ROOT / folder).rglob("*.py")}
    paths = [path.as_posix() for path in sources]
    files = set(re.findall(r"[\w/]+\.py\b", text))
    assert {"pneumo_train/backbones.py", "tests/edge/test_words.py"} <= files
    assert [file for file in files if not any(path.endswith(f"/{file}") for path in paths)] == []
    names = set(re.findall(r"`(_?[A-Z][A-Z_]+|[a-z]+_[a-z_]+)`", text)) - {"pneumo_edge", "pneumo_train"}
    assert {"BACKBONES", "choose_thresholds", "_MARKERS"} <= names
    code = "\n".join(sources.values())
    assert [name for name in names if not re.search(rf"\b{name}\b", code)] == []


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

    return {name: typer.main.get_command(import_module(module).app) for name, module in COMMANDS.items()}


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
    [("demo", 5), ("results RUNS='runs/a runs/b' DATA=films BASELINE=x BASELINE_BARE=y", 7)],
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
    ours = [span for span in code if not re.search(r"\b(git|pip|python -m http\.server)\b", span)]
    named = {option for span in ours for option in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", span)}
    assert named - known == set()


# What makes a command quick: they are run as they stand in the README, with these words added.
TINY = ("--backbone", "tiny", "--weights", "none", "--size", "64", "--batch-size", "8", "--learning-rate", "0.03")
QUICK = {
    "pneumo-train": [*TINY, "--epochs", "5", "--seed", "3"],
    "pneumo-export": ["--formats", "onnx"],
    "pneumo-infer": [],
    "pneumo-bench accuracy": [],
    "pneumo-bench latency": ["--threads", "1", "--queries", "10", "--rounds", "1"],
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as the README has it: chest_xray/, with films that a small backbone learns, and film.png, a phantom."""
    folder = tmp_path_factory.mktemp("readme")
    draw_films(folder / "chest_xray", "train", 60)
    draw_films(folder / "chest_xray", "test", 6, 101)
    film = min((draw_phantoms(folder / "phantoms", films=20) / "test" / "PNEUMONIA").iterdir())
    from PIL import Image

    with Image.open(film) as picture:
        picture.save(folder / "film.png")
    return folder


def run(line: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Runs one of our commands, or lines of Python: `["python", LINES]`."""
    name, *arguments = line
    environment = with_tiny_backbone(home) | {"XDG_CACHE_HOME": str(home / "cache")}
    sources = [str(ROOT / part) for part in ("train", "export", "edge_runtime", "benchmarks")]
    environment["PYTHONPATH"] = os.pathsep.join([*sources, environment["PYTHONPATH"]])
    entry = f"from {COMMANDS[name]} import main; main()" if name in COMMANDS else arguments.pop(0)
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


def test_the_commands_on_the_real_set_run(home: Path) -> None:
    pytest.importorskip("tensorflow", reason="training and export need TensorFlow")
    pytest.importorskip("tf2onnx", reason="the export needs tf2onnx")
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## The four commands on the real set")[1]
    block = re.split(r"^```", section, flags=re.MULTILINE)[1]
    lines = [shlex.split(line) for line in block.strip().splitlines()]
    assert [" ".join(line[:2]) if line[0] == "pneumo-bench" else line[0] for line in lines] == list(QUICK)
    for line, added in zip(lines, QUICK.values(), strict=True):
        done = run([*line, *added], home)
        # The gate may refuse a file, which is an answer; the others go on.
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
