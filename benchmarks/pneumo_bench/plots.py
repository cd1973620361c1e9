"""Draws the figures of the results, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pneumo_bench.end_to_end import MODES, PARTS
from pneumo_bench.output import threads_text
from pneumo_bench.robustness import DISTURBANCES
from pneumo_edge.atomic import replacing_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#2b7a78", "#c8553d", "#5b6770", "#e0a458", "#6a4c93", "#4d9de0", "#8a9a5b", "#b56576")
_ROW = 0.42
"""Height of a row of a chart, in inches."""


def draw_latency(path: Path, record: Mapping[str, Any]) -> None:
    """Draws p50, p90 and p99, on a logarithmic axis: a row for each contestant, a colour for each thread count."""
    names = list(dict.fromkeys(result["name"] for result in record["results"]))[::-1]
    counts = sorted({result["threads"] for result in record["results"]})
    figure, (axis,) = _new(1, 1, 9, 1.2 + _ROW * 0.6 * len(names))
    markers = {"p50_ms": "o", "p90_ms": "|", "p99_ms": ">"}
    for result in record["results"]:
        which = counts.index(result["threads"])
        place = names.index(result["name"]) + 0.4 * ((len(counts) - 1) / 2 - which) / len(counts)
        found = {key: result[key]["median"] for key in markers if result[key]}
        axis.plot(list(found.values()), [place] * len(found), color=COLOURS[which], linewidth=1)
        for key, value in found.items():
            axis.plot(value, place, markers[key], color=COLOURS[which], markersize=4)
    _logarithmic(axis, [result[key]["median"] for result in record["results"] for key in markers if result[key]])
    axis.set_yticks(range(len(names)), names, fontsize=7)
    axis.set_ylim(-0.6, len(names) - 0.4)
    axis.grid(axis="x", alpha=0.3)
    axis.set_xlabel("milliseconds for one film: median, 90th and 99th percentile" + _busy(record))
    for which, count in enumerate(counts):
        axis.plot([], [], "o-", color=COLOURS[which], markersize=4, label=threads_text(count))
    figure.legend(loc="outside lower center", ncols=len(counts), fontsize=8)
    _write(path, figure)


def draw_accuracy(path: Path, record: Mapping[str, Any]) -> None:
    """Draws accuracy, sensitivity and specificity of each file with their intervals."""
    results = record["results"][::-1]
    figure, (axis,) = _new(1, 1, 9, 1.2 + _ROW * max(1, len(results)))
    for i, key in enumerate(("accuracy", "sensitivity", "specificity")):
        places = np.arange(len(results)) + (1 - i) * 0.22
        found = [_at_point(result)[key] for result in results]
        values, errors = _interval(found)
        axis.errorbar(values, places, xerr=errors, fmt="o", markersize=4, color=COLOURS[i], label=key, capsize=2)
    axis.set_yticks(range(len(results)), [result["name"] for result in results], fontsize=7)
    axis.set_xlabel(f"on {record['settings']['films']} {record['settings']['split']} films, with the 95 % interval")
    axis.set_ylim(-0.6, len(results) - 0.4)
    axis.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    _write(path, figure)


def draw_robustness(path: Path, record: Mapping[str, Any]) -> None:
    """Draws AUC and accuracy of each file against the strength of each disturbance."""
    figure, axes = _new(2, len(DISTURBANCES), 2.5 * len(DISTURBANCES), 5.6)
    for column, disturbance in enumerate(DISTURBANCES):
        for i, result in enumerate(record["results"]):
            found = [each for each in result["robustness"] if each["disturbance"] == disturbance.name]
            clean = {"auc": result["measures"]["auc"], "accuracy": _at_point(result)["accuracy"]}
            for row, key in enumerate(("auc", "accuracy")):
                points = {each["strength"]: each[key]["value"] for each in found}
                if disturbance.neutral is not None:
                    points[disturbance.neutral] = clean[key]["value"]
                xs = sorted(points)
                axis = axes[row * len(DISTURBANCES) + column]
                colour = COLOURS[i % len(COLOURS)]
                # Both formats of a float model have the same line.
                style = "o--" if result["name"].endswith(".tflite") else "o-"
                axis.plot(xs, [points[x] for x in xs], style, markersize=3, color=colour, label=result["name"])
                if disturbance.neutral is None:
                    axis.axhline(clean[key]["value"], color=colour, linewidth=0.8, linestyle=":")
        axes[column].set_title(disturbance.name, fontsize=10)
        axes[len(DISTURBANCES) + column].set_xlabel(disturbance.unit, fontsize=8)
    axes[0].set_ylabel("AUC")
    axes[len(DISTURBANCES)].set_ylabel("accuracy")
    for axis in axes:
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    _write(path, figure)


def draw_sites(path: Path, record: Mapping[str, Any]) -> None:
    """Draws AUC, sensitivity and specificity of each left-out site, and the mean AUC as a line."""
    results = [result for result in record["results"] if result["measures"]][::-1]
    figure, axes = _new(1, 2, 10, 1.6 + _ROW * max(1, len(results)))
    keys = {0: ("auc",), 1: ("sensitivity", "specificity")}
    for axis, shown in zip(axes, keys.values(), strict=True):
        for i, key in enumerate(shown):
            found = [
                result["measures"].get(key) or result["measures"]["operating_points"]["balanced"][key]
                for result in results
            ]
            values, errors = _interval(found)
            places = np.arange(len(results)) + (0 if len(shown) == 1 else 0.14 - 0.28 * i)
            colour = COLOURS[i + (len(shown) > 1)]
            axis.errorbar(values, places, xerr=errors, fmt="o", markersize=5, color=colour, label=key, capsize=3)
        axis.set_yticks(range(len(results)), [result["site"] for result in results], fontsize=8)
        axis.set_ylim(-0.6, len(results) - 0.4)
        axis.grid(axis="x", alpha=0.3)
    mean = record["mean"]
    if mean:
        value = mean["auc"]["value"]
        axes[0].axvline(value, color=COLOURS[2], linestyle="--", label=f"mean {value:.3f}")
    axes[0].set_xlabel("AUC at the site that was left out")
    axes[1].set_xlabel("at the threshold of the others")
    for axis in axes:
        axis.legend(fontsize=8)
    _write(path, figure)


def draw_accuracy_against_latency(path: Path, accuracy: Mapping[str, Any], latency: Mapping[str, Any]) -> list[str]:
    """Draws a point for each file that was both judged and timed in our runtime; its area is the size of the file.

    A colour for each model; ONNX is round, TFLite square, int8 strong, float pale. The latency is that of the smallest
    number of threads.

    Returns:
        Names of the files that were judged and not timed.
    """
    ours = [result for result in latency["results"] if result["engine"] == "pneumo"]
    threads = min((result["threads"] for result in ours), default=1)
    # By content: two results may have been made with other names for the same file.
    timed = {result["sha256"]: result for result in ours if result["threads"] == threads}
    both = [(result, timed[result["sha256"]]["p50_ms"]) for result in accuracy["results"] if result["sha256"] in timed]
    figure, (axis,) = _new(1, 1, 8, 5.2)
    models = list(dict.fromkeys(result["name"].rsplit("/", 1)[0] for result, _ in both))
    for result, time in both:
        p50 = time["median"]
        values, errors = _interval([_at_point(result)["accuracy"]])
        colour = COLOURS[models.index(result["name"].rsplit("/", 1)[0]) % len(COLOURS)]
        axis.errorbar([p50], values, yerr=errors, color=colour, capsize=3, linewidth=1)
        axis.scatter(
            [p50],
            values,
            s=20 + 12 * result["bytes"] / 1e6,
            color=colour,
            marker="s" if result["name"].endswith(".tflite") else "o",
            alpha=0.8 if ".int8." in result["name"] else 0.35,
            label=f"{result['name']}, {result['bytes'] / 1e6:.1f} MB",
        )
    settings = accuracy["settings"]
    _logarithmic(axis, [time["median"] for _, time in both])
    axis.set_xlabel(f"median milliseconds for one film, {threads_text(threads)}{_busy(latency)}")
    axis.set_ylabel(f"accuracy on {settings['films']} {settings['split']} films,\nwith the 95 % interval")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        legend = figure.legend(loc="outside lower center", ncols=2, fontsize=8)
        for handle in legend.legend_handles:
            if handle is not None and hasattr(handle, "set_sizes"):
                handle.set_sizes([30])
    _write(path, figure)
    return [result["name"] for result in accuracy["results"] if result["sha256"] not in timed]


def draw_end_to_end(path: Path, record: Mapping[str, Any]) -> None:
    """Draws the parts of each way as stacked bars, cold and warm side by side."""
    figure, axes = _new(1, 2, 12, 1.8 + _ROW * len(record["results"]) / 2)
    for axis, mode in zip(axes, MODES, strict=True):
        results = [result for result in record["results"] if result["mode"] == mode][::-1]
        left = np.zeros(len(results))
        for i, part in enumerate(PARTS):
            widths = np.array([result["milliseconds"].get(part, {"median": 0.0})["median"] for result in results])
            if mode == "cold" or widths.any():
                axis.barh(range(len(results)), widths, left=left, height=0.6, color=COLOURS[i], label=part)
            left = left + widths
        axis.set_title(mode, fontsize=10)
        axis.set_xlabel("milliseconds" + _busy(record))
        axis.set_yticks(range(len(results)), [result["name"] for result in results], fontsize=7)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(PARTS), fontsize=8)
    _write(path, figure)


def draw_archive(path: Path, record: Mapping[str, Any]) -> None:
    """Draws films a second of each way, and the estimated time for millions of films."""
    figure, (left, right) = _new(1, 2, 11, 4.2, sharey=False)
    for i, result in enumerate(record["results"]):
        speed = result["films_per_second"]
        reach = [[speed["median"] - speed["low"]], [speed["high"] - speed["median"]]]
        left.bar(i, speed["median"], 0.6, yerr=reach, capsize=4, color=COLOURS[i])
        left.annotate(
            f"{result['ratio']['median']:.2f} x", (i, speed["high"]), (0, 4), textcoords="offset points", ha="center"
        )
    left.margins(y=0.12)
    left.set_xticks(range(len(record["results"])), [result["name"] for result in record["results"]])
    left.set_ylabel("films a second" + _busy(record).replace(" (", "\n("))
    left.grid(axis="y", alpha=0.3)
    left.set_axisbelow(True)
    kinds = list(dict.fromkeys(each["kind"] for each in record["extrapolation"]))
    lines = {f"judging, {kind}": (kind, "judging_hours") for kind in kinds}
    lines |= {"the driver's work": (kinds[0], "driver_hours"), "listing": (kinds[0], "listing_hours")}
    for i, (name, (kind, key)) in enumerate(lines.items()):
        found = [each for each in record["extrapolation"] if each["kind"] == kind]
        style = "o-" if name.startswith("judging") else "s--"
        right.plot(
            [each["films"] for each in found], [each[key] for each in found], style, color=COLOURS[i], label=name
        )
    right.set_xscale("log")
    right.set_yscale("log")
    right.set_xticks([each["films"] for each in found], [f"{each['films'] / 1e6:.0f} million" for each in found])
    right.minorticks_off()
    right.yaxis.set_major_formatter("{x:g}")
    right.set_xlabel("films, on 100 cores, on paper")
    right.set_ylabel("hours")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    _write(path, figure)


def _new(
    rows: int, columns: int, width: float, height: float, sharey: Literal["row"] | bool = "row"
) -> tuple[Figure, list[Axes]]:
    # Not pyplot: its global state belongs to the user's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, list(figure.subplots(rows, columns, sharey=sharey, squeeze=False).flat)


def _logarithmic(axis: Axes, milliseconds: Sequence[float]) -> None:
    """Makes the x axis logarithmic with numbers that people read, and some room on both sides."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if not milliseconds:
        return
    axis.set_xscale("log")
    axis.set_xlim(min(milliseconds) / 2, max(milliseconds) * 2)
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _write(path: Path, figure: Figure) -> None:
    with replacing_file(path) as temporary:
        figure.savefig(temporary)


def _at_point(result: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = result["measures"]["operating_points"][result["operating_point"]]
    return found


def _interval(found: Sequence[Mapping[str, float]]) -> tuple[list[float], list[list[float]]]:
    """The values, and how far the intervals reach below and above them."""
    values = [each["value"] for each in found]
    return values, [[max(0.0, e["value"] - e["low"]) for e in found], [max(0.0, e["high"] - e["value"]) for e in found]]


def _busy(record: Mapping[str, Any]) -> str:
    return " (the machine was busy: not to be trusted)" if record["load"]["busy"] else ""
