"""Writes the tables of results into README.md and docs/ from the files in docs/results/.

    python -m pneumo_bench.readme README.md docs/models.md

A table stands between two lines, `<!-- table: NAME -->` and `<!-- end of table -->`, and is never edited by hand. NAME
is one of `TABLES`. A test checks that each table is what this command would write.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pneumo_bench.output import read_result, row, short_text
from pneumo_edge.atomic import write_text
from pneumo_edge.errors import PneumoError, RunError, UsageError

RESULTS = Path(__file__).resolve().parents[2] / "docs" / "results"

SITES = {
    "kermany": "Kermany: children of 1 to 5 years, Guangzhou",
    "rsna": "RSNA: adults, NIH Clinical Center",
    "siim_covid19": "SIIM-COVID: adults, Spain and the USA",
}
"""Site -> whom its films show. Other sites go by their name."""

NOT_SEEN = "sites/sites.json"
"""Result of `pneumo-bench sites`: how good the recipe is at sites that training has not seen."""

LARGEST = 3
"""Packages of the base install that are named, those that take most of the disk."""

MEASURES = ("AUC", "accuracy", "sensitivity", "specificity", "ECE")

_TABLE = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end of table -->)", re.DOTALL)
_CODE = re.compile(r"(^```.*?^```$)", re.DOTALL | re.MULTILINE)


def fill(text: str, results: Path = RESULTS) -> str:
    """Returns a page with all its tables made anew.

    Args:
        text: Markdown. Blocks of code stay as they are.
        results: docs/results/, or a folder like it.

    Raises:
        UsageError: A table has a name that is none of `TABLES`, or no end.
        RunError: A file that a table is made from is missing or damaged.
    """
    parts = _CODE.split(text)
    for i in range(0, len(parts), 2):
        parts[i] = _fill(parts[i], results)
    return "".join(parts)


def _fill(text: str, results: Path) -> str:
    found = len(_TABLE.findall(text))
    if text.count("<!-- table:") != found or text.count("<!-- end of table -->") != found:
        raise UsageError("a table needs both its lines, <!-- table: NAME --> and <!-- end of table -->")

    def made(match: re.Match[str]) -> str:
        start, name, end = match.groups()
        if name not in TABLES:
            raise UsageError(f"there is no table {name}: call it {' or '.join(TABLES)}")
        try:
            return f"{start}{TABLES[name](results)}\n{end}"
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RunError(f"the table {name} cannot be made from {results} ({error!r}): call make results") from error

    return _TABLE.sub(made, text)


def accuracy(results: Path) -> str:
    """Returns the table of the default model: each site's test films, their mean, and sites that it had not seen.

    The default model is the first run of `results.json` that has test figures and has left out no site.
    """
    measured = [test for _, _, test in _measured(results)]
    if not measured:
        raise RunError(f"{results} has no run with test figures: call pneumo-train with --test, then make results")
    # The form of a run on one site, before there were several.
    sites = measured[0].get("sites") or {"kermany": measured[0]}
    lines = _heading("test films", "number", *MEASURES)
    lines += [_row(SITES.get(site, site), found["n"], found) for site, found in sites.items()]
    if len(sites) > 1:
        lines.append(_row("**mean over the sites**", measured[0]["n"], measured[0]["mean"]))
        lines += _left_out(results / NOT_SEEN)
    return "\n".join(lines)


def _left_out(file: Path) -> list[str]:
    """Returns a row for each site of `sites.json`, their mean, and what they are."""
    if not file.is_file():
        return []
    record = read_result(file)
    lines, total = [], 0
    for found in record["results"]:
        name = f"{SITES.get(found['site'], found['site'])}, not seen in training"
        alone = found["one_class"]
        if alone is not None:
            # Films of one class have no other measure than the share that is right.
            lines.append(row((name, f"{alone['n']:,}", "–", short_text(alone["right"]["balanced"]), "–", "–", "–")))
        else:
            lines.append(_row(name, found["measures"]["n"], found["measures"]))
            total += found["measures"]["n"]
    if (mean := record["mean"]) is not None:
        figures = [short_text(mean[key]) for key in ("auc", "accuracy", "sensitivity", "specificity")]
        lines.append(row(("**mean over sites not seen in training**", f"{total:,}", *figures, "–")))
    settings = record["settings"]
    films = f", about {settings['limit']:,} films" if settings["limit"] else ""
    network = f"{settings['backbone']}, {settings['head']} head, {settings['size']} pixels"
    note = (
        "Not seen in training: judged by a model that has learned from the other sites alone "
        f"({network}, {settings['epochs']} epochs{films})."
    )
    return [*lines, "", note]


def models(results: Path) -> str:
    """Returns a table of all measured runs: test figures, size of the int8 file, its time against ResNet50.

    Two tables where there are runs on several sites and runs on one. The figures of several sites are their mean.
    """
    latency = read_result(results / "bench" / "latency.json")["results"]
    ratios = {each["name"]: each["p50_ratio"]["median"] for each in latency if each["threads"] == 1}
    tables: dict[str, list[str]] = {
        "Trained on several sites, mean over their test films:": [],
        "Trained on one site:": [],
    }
    several, one = tables.values()
    for name, config, test in _measured(results):
        model = f"{config['backbone']}-{config['head']}-{config['size']}"
        report = results / name / "parity.json"
        exported = (read_result(report)["files"] if report.is_file() else {}).get("model.int8.onnx")
        size = f"{exported['bytes'] / 1e6:.1f} MB" if exported else "–"
        ratio = ratios.get(f"{model}/model.int8.onnx") if exported else None
        cells = (f"[{name}](results/{name}/metrics.json)", model, *_figures(test.get("mean") or test))
        (several if len(test.get("sites", {})) > 1 else one).append(row((*cells, size, _one_in(ratio))))
    heading = _heading("run", "model", *MEASURES, "int8", "time")
    found = {title: "\n".join([*heading, *rows]) for title, rows in tables.items() if rows}
    return "\n\n".join(f"{title}\n\n{table}" if len(found) > 1 else table for title, table in found.items())


def footprint(results: Path) -> str:
    """Returns the table of what the model that comes with pneumo takes of a device, in the engine that comes first."""
    measured = read_result(results / "engines" / "native" / "end-to-end.json")
    name = measured["results"][0]["name"]
    [cold] = [each for each in measured["results"] if each["name"] == name and each["mode"] == "cold"]
    timed = read_result(results / "engines" / "native" / "latency.json")
    [time] = [each for each in timed["results"] if each["name"] == name and each["threads"] == 1]
    processor = timed["machine"]["processor"].replace("(R)", "").removesuffix(" Processor")
    install = measured["install"]
    largest = sorted(install.keys() - {"total"}, key=install.__getitem__, reverse=True)[:LARGEST]
    base = ", ".join(f"{package} {install[package] / 1e6:.0f}" for package in largest)
    rows = {
        "size of the file": f"{time['bytes'] / 1e6:.1f} MB",
        f"time for one film, one thread of an {processor}": f"{time['p50_ms']['median']:.1f} ms",
        "memory of `pneumo-infer film.png` at its peak": f"{cold['peak_rss']['median'] / 1e6:.0f} MB",
        f"base install on the disk ({base})": f"{install['total'] / 1e6:.0f} MB",
    }
    return "\n".join([row((f"`{name}`", "")), row(("---", "---:")), *map(row, rows.items())])


TABLES: Mapping[str, Callable[[Path], str]] = {"accuracy": accuracy, "models": models, "footprint": footprint}


def _heading(*columns: str) -> list[str]:
    text = {"test films", "run", "model"}
    return [row(columns), row(tuple("---" if column in text else "---:" for column in columns))]


def _row(name: str, films: int, measures: Mapping[str, Any]) -> str:
    return row((name, f"{films:,}", *_figures(measures)))


def _figures(measures: Mapping[str, Any]) -> list[str]:
    """Returns the five measures, the middle three at the operating point `balanced`."""
    point = measures["operating_points"]["balanced"]
    found = (measures["auc"], point["accuracy"], point["sensitivity"], point["specificity"], measures["ece"])
    return [short_text(each) for each in found]


def _one_in(ratio: float | None) -> str:
    return "–" if ratio is None else f"1/{1 / ratio:.1f}"


def _measured(folder: Path) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Returns name, configuration and test figures of each run that has such figures and left out no site."""
    found = []
    for name in read_result(folder / "results.json")["runs"]:
        metrics = read_result(folder / name / "metrics.json")
        if metrics["test"] is not None and metrics.get("left_out") is None:
            found.append((name, read_result(folder / name / "config.json"), metrics["test"]))
    return found


def main(arguments: Sequence[str]) -> None:
    """Writes each page whose tables have changed."""
    if not arguments:
        sys.exit(__doc__)
    try:
        for page in map(Path, arguments):
            text = page.read_text(encoding="utf-8")
            filled = fill(text)
            if filled != text:
                write_text(page, filled)
                print(f"{page}: tables made anew")
    except OSError as error:
        sys.exit(f"pneumo_bench.readme: {error.filename} cannot be read: {error.strerror}")
    except PneumoError as error:
        sys.exit(f"pneumo_bench.readme: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
