"""Collects the results of finished runs in docs/results/: numbers and figures, never a film or a model.

    python -m pneumo_bench.results docs/results RUN...

Each run gets a folder docs/results/RUN/. results.json and results.md cover all runs that have been collected so far,
and the results of pneumo-bench in docs/results/bench/ and docs/results/sites/.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from pneumo_bench.output import read_result, row, short_text
from pneumo_edge.atomic import replacing_folder, write_json, write_text
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import PneumoError, RunError, UsageError
from pneumo_train.report import FIGURES as FILM_FREE
from pneumo_train.run import Run

FIGURES = tuple(f"{name}.png" for name in FILM_FREE)

BENCH = "bench"
SITES = "sites"
TAKEN = frozenset({BENCH, SITES, "arm"})
"""Folders in docs/results/ that other commands fill."""

SPLITS = ("validation", "validation_perturbed", "test", "left_out")
SHARES = ("accuracy", "sensitivity", "specificity")
MEASURES = ("auc", *SHARES, "ece")
POINTING = ("points", "mean_map_points", "pixel_auc", "iou", "touched", "evidence_outside", "boxes_cover")
"""Measures of heatmaps against boxes: see `pneumo_train.pointing`."""

_APART_BY_SEED = frozenset({"seed", "trained", "versions", "sources", "licences"})
"""Settings that may differ between runs of one recipe with several seeds; texts about films are no part of it."""

_ABSOLUTE = re.compile(r"(?<![^\s\"'(=])(?:[A-Za-z]:)?[/\\](?:[^/\\\s]+[/\\])+([^/\\\s]+)")
"""An absolute path, and its last part."""


def collect(run: Path, results: Path) -> Path:
    """Copies the results of a finished run to `results/NAME`, whole or not at all.

    No copy names a folder of this machine: each absolute path is cut down to its last part, and `data` to the name of
    the data. `parity.json` is copied if the run has been exported, even if all files were refused.

    Raises:
        RunError: The run is not finished, or lacks a figure.
        UsageError: It has the name of a folder that other commands fill.
    """
    name = run.resolve().name
    if name in TAKEN:
        raise UsageError(f"{run} cannot be collected, since {results / name} holds other results: rename the run")
    opened = Run(run)
    config, metrics = opened.config, opened.metrics
    settings = read_result(run / "config.json") | {"data": config.data_name}
    reports = (run / "bundle" / "parity.json", run / "bundle-refused" / "parity.json")
    parity = next((read_result(path) for path in reports if path.exists()), None)
    target = results / name
    with replacing_folder(target) as folder:
        write_json(folder / "config.json", _without_folders(settings))
        write_json(folder / "metrics.json", metrics)
        if parity is not None:
            write_json(folder / "parity.json", _without_folders(parity))
        for file in ("history.csv", *FIGURES):
            try:
                shutil.copyfile(run / file, folder / file)
            except FileNotFoundError:
                raise RunError(f"{run} holds no {file}: finish it with pneumo-train --resume {run}") from None
    return target


def summarise(results: Path, first: Sequence[str] = ()) -> None:
    """Writes `results.json` and `results.md`: the measures of all collected runs, and links to the other results.

    Args:
        results: Folder that `collect` has filled.
        first: Names of the runs that head the table; the others follow by name.
    """
    there = sorted(path.parent.name for path in results.glob("*/metrics.json") if path.parent.name not in TAKEN)
    runs: dict[str, Any] = {}
    recipes: dict[str, list[str]] = {}
    for name in [*first, *(name for name in there if name not in first)]:
        config, metrics = read_result(results / name / "config.json"), read_result(results / name / "metrics.json")
        # Runs of before films of several sites have no measure of a site that was left out.
        measured = {split: _in_short(metrics.get(split)) for split in SPLITS}
        runs[name] = {key: config[key] for key in ("backbone", "head", "size", "data", "data_hash")} | measured
        recipe = json.dumps({key: value for key, value in config.items() if key not in _APART_BY_SEED}, sort_keys=True)
        recipes.setdefault(recipe, []).append(name)
    seeds = {names[0]: _over_seeds(names, runs) for names in recipes.values() if len(names) > 1}
    bench = sorted(f"{folder}/{path.name}" for folder in (BENCH, SITES) for path in (results / folder).glob("*.md"))
    write_json(results / "results.json", {"runs": runs, "seeds": seeds, "bench": bench})
    write_text(results / "results.md", _markdown(results, runs, seeds, bench))


def _in_short(measures: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Returns the measures of the tables: of several sites their mean, and beside it each; where the heatmap points."""
    if measures is None or ("mean" in measures and measures["mean"] is None):
        return None
    sites = measures.get("sites") or {}
    short = {key: measures[key] for key in ("n", "patients")} | _shown(measures.get("mean") or measures)
    if len(sites) > 1:
        short["sites"] = {site: {"n": m["n"], "patients": m["patients"]} | _shown(m) for site, m in sites.items()}
    pointing = (measures.get("pointing") or {}).get("boxed")
    if pointing:
        found = pointing["all"]
        short["pointing"] = {key: found[key] for key in ("films", *POINTING) if key in found}
    return short


def _shown(measures: Mapping[str, Any]) -> dict[str, Any]:
    point = measures["operating_points"]["balanced"]
    return {key: measures[key] for key in ("auc", "ece")} | {key: point[key] for key in SHARES}


def _over_seeds(names: Sequence[str], runs: Mapping[str, Any]) -> dict[str, Any]:
    """Mean and standard deviation (of the sample: n - 1) of each measure over runs that differ by their seed alone."""
    found: dict[str, Any] = {"runs": list(names)}
    for split in SPLITS:
        measured = [runs[name][split] for name in names]
        if None not in measured:
            values = {key: [each[key]["value"] for each in measured] for key in MEASURES}
            found[split] = {key: {"mean": mean(v), "sd": stdev(v)} for key, v in values.items()}
    return found


def _markdown(results: Path, runs: Mapping[str, Any], seeds: Mapping[str, Any], bench: Sequence[str]) -> str:
    made_by, page = 'make results RUNS="..." DATA=...', "../benchmarks.md"
    if results.parent.name == "results":
        # Runs of a recipe that was given up stand in a folder of their own: docs/results/NAME.
        made_by, page = f"python -m pneumo_bench.results docs/results/{results.name} RUN...", "../../benchmarks.md"
    columns = ("AUC", "accuracy", "sensitivity", "specificity", "ECE")
    lines = [
        "# Results",
        "",
        f"Made by `{made_by}`; [what each figure means]({page}). Keras models at the "
        "operating point `balanced`; in brackets the 95 % interval, bootstrapped by patient. Epoch, threshold and "
        "calibration were chosen on the validation films, which flatters these; the test films decided nothing.",
        "",
        *_heading("run", "model", "films", *columns),
    ]
    for name, run in runs.items():
        for split in SPLITS:
            measures = run[split]
            if measures is None:
                continue
            model = f"{run['backbone']}, {run['head']}, {run['size']}"
            films = f"{measures['n']} {_split(split)}"
            sites = measures.get("sites", {})
            mean = f", mean over {len(sites)} sites" if sites else ""
            lines.append(row((_link(name), model, films + mean, *(short_text(measures[key]) for key in MEASURES))))
            for site, m in sites.items():
                lines.append(
                    row(("", "", f"{m['n']} {_split(split)}: {site}", *(short_text(m[key]) for key in MEASURES)))
                )
    lines += _pointing(runs, page)
    if seeds:
        lines += ["", "Runs that differ by their seed alone, mean ± standard deviation:", ""]
        lines += _heading("runs", "films", *columns)
    for group in seeds.values():
        for split in SPLITS:
            if split in group:
                values = (f"{group[split][key]['mean']:.3f} ± {group[split][key]['sd']:.3f}" for key in MEASURES)
                lines.append(row((", ".join(group["runs"]), _split(split), *values)))
    if bench:
        lines += ["", "Side by side on one machine:", ""]
        lines += [f"- [{Path(file).stem}]({file})" for file in bench]
    return "\n".join([*lines, "", NOT_A_DIAGNOSIS, ""])


def _pointing(runs: Mapping[str, Any], page: str) -> list[str]:
    """Returns the lines of the table of heatmaps against boxes, with a link to a page; none where no run had any."""
    lines = []
    for name, run in runs.items():
        for split in SPLITS:
            found = (run[split] or {}).get("pointing")
            if found:
                cells = (short_text(found[key]) if key in found else "" for key in POINTING)
                lines.append(row((_link(name), f"{found['films']} {_split(split)}", *cells)))
    if not lines:
        return []
    columns = (
        "run", "films with boxes", "points into a box", "the mean map does", "pixel AUC", "IoU", "boxes found",
        "evidence outside", "boxes cover",
    )  # fmt: skip
    heading = [row(columns), row((*["---"] * 2, *["---:"] * len(POINTING)))]
    return [
        "",
        f"Heatmaps against the boxes of radiologists ([what is measured]({page}#heatmaps)):",
        "",
        *heading,
        *lines,
    ]


def _link(name: str) -> str:
    return f"[{name}]({name}/metrics.json)"


def _split(split: str) -> str:
    return split.replace("left_out", "of the left-out site").replace("_", ", ")


def _heading(*columns: str) -> list[str]:
    numbers = len(MEASURES)
    return [row(columns), row((*["---"] * (len(columns) - numbers), *["---:"] * numbers))]


def _without_folders(value: Any) -> Any:
    """Cuts every absolute path in the strings of a JSON value down to its last part."""
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return _ABSOLUTE.sub(r"\1", value) if isinstance(value, str) else value


def main(arguments: Sequence[str]) -> None:
    """Collects all runs, then summarises them."""
    if len(arguments) < 2:
        sys.exit(__doc__)
    results, *runs = map(Path, arguments)
    try:
        collected = [collect(run, results).name for run in runs]
        if len(set(collected)) < len(collected):
            raise UsageError(f"two runs have one name, {', '.join(collected)}: rename one of them")
        summarise(results, collected)
    except PneumoError as error:
        sys.exit(f"pneumo_bench.results: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
