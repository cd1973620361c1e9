"""Writes summary.json and report.html, which tell what an archive holds. Neither names a film."""

from __future__ import annotations

import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pneumo_edge import __version__
from pneumo_edge.archive.counts import BINS, FAILED, MS_EDGES, WITHHELD
from pneumo_edge.archive.drive import Outcome
from pneumo_edge.archive.places import Store
from pneumo_edge.bundle import LABELS
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.report_page import page, percent, table
from pneumo_edge.svg import line, rectangle, svg, text
from pneumo_edge.watch import LAST, WATCHED, compare, limit

FORMAT_VERSION = 1
SUMMARY, PAGE = "summary.json", "report.html"

NORMAL, PNEUMONIA = LABELS
_JUDGED = (PNEUMONIA, NORMAL, WITHHELD)

_SHOWN_KINDS = 20
_RUN = ("started", "pneumo", "threads", "listing_seconds", "judged", "seconds", "driver_seconds", "films_per_second")

# Told apart by colour-blind eyes (Okabe and Ito; Tol), as in the report of a training run.
_COLOURS = {PNEUMONIA: "#d55e00", NORMAL: "#0072b2", WITHHELD: "#8a949a", FAILED: "#332288"}
_WORDS = {PNEUMONIA: PNEUMONIA, NORMAL: NORMAL, WITHHELD: "verdict withheld", FAILED: "could not be judged"}
_TIME_COLOURS = {"read": "#117733", "infer": "#aa4499"}


def write_report(store: Store, outcome: Outcome) -> None:
    """Writes `summary.json` and `report.html`. Both keep the earlier runs."""
    summary = _summarise(outcome, _runs_before(store))
    store.write(SUMMARY, (json.dumps(summary, indent=2, allow_nan=False) + "\n").encode())
    store.write(PAGE, _page(summary).encode())


def sentence(outcome: Outcome) -> str:
    """Returns the result of a run in one line."""
    verdicts = outcome.counts.verdicts
    parts = [f"{verdicts[verdict]:,} {_WORDS[verdict]}" for verdict in (*_JUDGED, FAILED)]
    speed = f"; {outcome.judged / outcome.seconds:.1f} films/s in this run" if outcome.judged else ""
    text = f"{outcome.counts.films:,} films: {', '.join(parts)}{speed}"
    if outcome.missing:
        films = sum(outcome.missing.values())
        text += (
            f"; {films:,} films are MISSING ({len(outcome.missing):,} parts of {outcome.parts:,}): run the same again"
        )
    return text


def _runs_before(store: Store) -> list[dict[str, Any]]:
    try:
        runs = json.loads(store.read(SUMMARY) or b"{}").get("runs", [])
        return [{key: run[key] for key in _RUN} for run in runs]
    except (ValueError, AttributeError, KeyError, TypeError):
        # The file is written anew. The rows are what counts.
        return []


def _summarise(outcome: Outcome, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    counts, made = outcome.counts, outcome.description
    judged = counts.films - counts.verdicts[FAILED]
    return {
        "format_version": FORMAT_VERSION,
        "note": NOT_A_DIAGNOSIS,
        "schema_version": made.schema_version,
        "model": made.model,
        "file": made.file,
        "bundle_sha256": made.bundle_sha256,
        "threshold": outcome.threshold,
        "films": outcome.films,
        "parts": outcome.parts,
        "batch": made.batch,
        "missing": {"films": sum(outcome.missing.values()), "parts": len(outcome.missing)},
        "unlisted_folders": outcome.unlisted,
        "verdicts": {verdict: counts.verdicts[verdict] for verdict in (*_JUDGED, FAILED)},
        "probability": {"step": 1 / BINS}
        | {verdict: [counts.probabilities[verdict, i] for i in range(BINS)] for verdict in _JUDGED},
        "watch": _compare(outcome),
        "withheld": _largest(counts.reasons),
        "errors": _largest(counts.errors),
        "milliseconds": {
            "edges": list(MS_EDGES),
            **{
                name: {
                    "mean": round(counts.milliseconds[name] / judged, 3) if judged else None,
                    "films": [counts.times[name, i] for i in range(len(MS_EDGES))],
                }
                for name in _TIME_COLOURS
            },
        },
        "runs": [
            *runs,
            {
                "started": outcome.started,
                "pneumo": __version__,
                "threads": outcome.threads,
                "listing_seconds": round(outcome.listing_seconds, 3),
                "judged": outcome.judged,
                "seconds": round(outcome.seconds, 3),
                "driver_seconds": round(outcome.driver_seconds, 3),
                "films_per_second": round(outcome.judged / outcome.seconds, 3) if outcome.judged else None,
            },
        ],
    }


def _compare(outcome: Outcome) -> dict[str, Any] | None:
    """Compares the films with the reference of the bundle: None where it has none, or nothing was judged."""
    counts, reference = outcome.counts, outcome.reference
    verdicts = counts.verdicts
    judged = sum(verdicts[verdict] for verdict in _JUDGED)
    if reference is None or not judged:
        return None
    values: dict[str, Counter[float]] = {name: Counter() for name in WATCHED}
    for (name, value), films in counts.watched.items():
        values[name][value] += films
    # Of many films any distance is sure: what counts is whether a device would notice it in its last ones.
    allowed = limit(min(judged, LAST), reference.films)
    distances = compare(values.values(), reference)
    labelled = verdicts[PNEUMONIA] + verdicts[NORMAL]
    return {
        "reference_films": reference.films,
        "limit": round(allowed, 4),
        "distance": {name: round(far, 4) for name, far in distances.items()},
        "shifted": [name for name, far in distances.items() if far > allowed],
        "withheld": verdicts[WITHHELD] / judged,
        "pneumonia": verdicts[PNEUMONIA] / labelled if labelled else None,
        "expected": outcome.expected,
    }


def _largest(kinds: Counter[str]) -> dict[str, int]:
    """Returns the most common kinds, and the sum of the rest."""
    found = dict(kinds.most_common(_SHOWN_KINDS))
    rest = kinds.total() - sum(found.values())
    return found | ({"all others": rest} if rest else {})


# ------------------------------------------------------------------------------------------------------ the diagrams

_WIDTH, _LEFT, _RIGHT = 960, 76, 30
"""Width and margins of a diagram, in units of its own: a page may show it at any size."""


def _columns(
    top: float, height: float, counts: Sequence[int], colour: str, title: str, names: Sequence[str]
) -> list[str]:
    """Draws one histogram, on a logarithmic scale, so that single films are seen beside a million."""
    base, wide = top + height, (_WIDTH - _LEFT - _RIGHT) / len(counts)
    most = max(1, math.ceil(math.log10(max(1, *counts)) + 0.05))
    shapes = []
    for power in range(most + 1):
        y = base - height * (power + 1) / (most + 1)
        if power in {0, most} or height / most > 18:
            shapes += [line(_LEFT, y, _WIDTH - _RIGHT, y), text(_LEFT - 8, y + 4, f"{10**power:,}", "end")]
    for i, count in enumerate(counts):
        if count:
            # One film reaches the first line, none the base.
            tall = height * (math.log10(count) + 1) / (most + 1)
            says = f"{names[i]}: {count:,} films"
            shapes.append(rectangle(_LEFT + i * wide + 0.5, base - tall, wide - 1, tall, colour, says))
    shapes.append(line(_LEFT, base, _WIDTH - _RIGHT, base, "#46525a"))
    return [*shapes, text(_LEFT + 8, top - 8, title, "start", colour, 600)]


def _verdict_bar(verdicts: Mapping[str, int]) -> str:
    total, x, shapes = max(1, sum(verdicts.values())), 0.0, []
    for verdict, films in verdicts.items():
        wide = _WIDTH * films / total
        shapes.append(rectangle(x, 0, wide, 44, _COLOURS[verdict], f"{_WORDS[verdict]}: {films:,} films"))
        if wide > 60:
            shapes.append(text(x + wide / 2, 28, percent(films / total), "middle", "#ffffff", 600))
        x += wide
    says = ", ".join(f"{films:,} {_WORDS[verdict]}" for verdict, films in verdicts.items())
    return svg(_WIDTH, 44, f"Films by verdict: {says}", *shapes)


def _probability_diagram(summary: Mapping[str, Any]) -> str:
    step, height, gap = summary["probability"]["step"], 110, 44
    names = [f"{100 * i * step:.0f} to {100 * (i + 1) * step:.0f} %" for i in range(BINS)]
    shapes = []
    for row, verdict in enumerate(_JUDGED):
        films, top = summary["verdicts"][verdict], gap * (row + 1) - 12 + height * row
        title = f"{_WORDS[verdict]}: {films:,} films"
        shapes += _columns(top, height, summary["probability"][verdict], _COLOURS[verdict], title, names)
    base = gap * len(_JUDGED) - 12 + height * len(_JUDGED)
    width = _WIDTH - _LEFT - _RIGHT
    x = _LEFT + width * summary["threshold"]
    shapes += [line(x, 12, x, base, "#1d2529", "5 4")]
    shapes += [text(x, 10, f"threshold {percent(summary['threshold'])}", "middle", "#1d2529")]
    shapes += [text(_LEFT + width * tenth / 10, base + 20, f"{10 * tenth} %") for tenth in range(11)]
    shapes += [text(_LEFT + width / 2, base + 42, "probability of pneumonia")]
    return svg(_WIDTH, base + 52, "Histograms of the probability of pneumonia, by verdict", *shapes)


def _time_diagram(milliseconds: Mapping[str, Any]) -> str:
    edges, height, gap = milliseconds["edges"], 110, 44
    used = [i for i in range(len(edges)) if any(milliseconds[name]["films"][i] for name in _TIME_COLOURS)]
    first, last = min(used), max(used) + 1
    names = [f"from {edge:g} ms" for edge in edges[first:last]]
    shapes = []
    for row, (name, colour) in enumerate(_TIME_COLOURS.items()):
        what = "decoding" if name == "read" else "inference"
        title = f"{what}: {milliseconds[name]['mean']:.1f} ms in the mean"
        top = gap * (row + 1) - 12 + height * row
        shapes += _columns(top, height, milliseconds[name]["films"][first:last], colour, title, names)
    base, wide = gap * 2 - 12 + height * 2, (_WIDTH - _LEFT - _RIGHT) / (last - first)
    every = max(1, math.ceil((last - first) / 18))
    shapes += [
        text(_LEFT + i * wide, base + 20, f"{edge:g}") for i, edge in enumerate(edges[first:last]) if i % every == 0
    ]
    shapes += [text(_LEFT + (_WIDTH - _LEFT - _RIGHT) / 2, base + 42, "milliseconds for one film on one core")]
    return svg(_WIDTH, base + 52, "Histograms of the milliseconds that reading and inference take", *shapes)


# ----------------------------------------------------------------------------------------------------------- the page


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of plain text."""
    return table(html.escape(caption), header, ([html.escape(cell) for cell in row] for row in rows))


def _kinds(title: str, caption: str, first: str, kinds: Mapping[str, int], films: int) -> str:
    if not kinds:
        return ""
    rows = [(kind, f"{count:,}", percent(count / films)) for kind, count in kinds.items()]
    return f"<section><h2>{title}</h2>{_table(caption, (first, 'films', 'of all'), rows)}</section>"


def _reference(compared: Mapping[str, Any] | None) -> str:
    if compared is None:
        return ""
    shifted = compared["shifted"]
    said = (
        f"<b>These films are unlike those that the model was tested on</b> ({', '.join(shifted)}): calibrate it on "
        "films of this place before its probabilities are believed (pneumo-calibrate)."
        if shifted
        else "These films are like those that the model was tested on, as far as scores, novelty and contrast can tell."
    )
    called = "none" if compared["pneumonia"] is None else percent(compared["pneumonia"])
    rows = [
        (name, f"{far:.2f}", f"{compared['limit']:.2f}", "yes" if name in shifted else "no")
        for name, far in compared["distance"].items()
    ]
    caption = f"Distance from {compared['reference_films']:,} films: 0 as they are, 1 nothing in common"
    return (
        f"<section><h2>Are these the films that it knows?</h2><p>{said}</p>"
        f"{_table(caption, ('of', 'distance', 'limit', 'shifted'), rows)}"
        f"<p>{called} of the verdicts are PNEUMONIA, {percent(compared['expected'])} would be among the films that it "
        f"was tested on; {percent(compared['withheld'])} are withheld.</p></section>"
    )


def _page(summary: Mapping[str, Any]) -> str:
    verdicts = summary["verdicts"]
    rows = sum(verdicts.values())
    cards = "".join(
        f'<div class="card" style="border-color:{_COLOURS[verdict]}"><b>{_WORDS[verdict]}</b>'
        f"<strong>{films:,}</strong><span>{percent(films / rows) if rows else 'none'}</span></div>"
        for verdict, films in verdicts.items()
    )
    missing = summary["missing"]
    notes = f"<strong>{NOT_A_DIAGNOSIS}</strong>"
    if missing["films"]:
        notes += (
            f" <strong>This archive is not complete:</strong> {missing['films']:,} films are missing "
            f"({missing['parts']:,} of {summary['parts']:,} parts). Run the same command again."
        )
    if summary["unlisted_folders"]:
        notes += f" {summary['unlisted_folders']:,} folders could not be searched for films."
    runs = [
        (
            run["started"].replace("T", " ").replace("+00:00", " UTC"),
            f"{run['judged']:,}",
            f"{run['seconds']:,.1f}",
            "–" if run["films_per_second"] is None else f"{run['films_per_second']:,.1f}",
            str(run["threads"]),
            f"{run['listing_seconds']:,.1f}",
        )
        for run in summary["runs"]
    ]
    times = ""
    if summary["milliseconds"]["read"]["mean"] is not None:
        times = (
            '<section class="figure"><h2>Time for a film</h2><p>What one core needs for one film. Fetching is not in '
            f"it: the next films are fetched while one is judged.</p>{_time_diagram(summary['milliseconds'])}</section>"
        )
    settings = [
        ("model", f"{summary['model']}, {summary['file']}"),
        ("SHA-256 of the bundle's model.json", summary["bundle_sha256"]),
        ("threshold on the probability", percent(summary["threshold"])),
        ("parts", f"{summary['parts']:,}, {summary['batch']:,} films in each but the last of a run"),
        ("schema version", str(summary["schema_version"])),
    ]
    header = f"""<h1>Archive of {rows:,} films</h1>
<p>NORMAL or PNEUMONIA on chest X-rays, by {html.escape(summary["model"])}</p>
<p class="note">{notes}</p>"""
    main = f"""<div class="archive"><section><h2>In short</h2>
<div class="cards">{cards}</div>{_verdict_bar(verdicts)}
<p>A verdict is withheld where a picture does not look like the chest films that the model has learned from. The model
has its limits, which its card names; shares here are those of this archive's films and of this model, not those of a
disease.</p></section>
{_reference(summary["watch"])}
<section class="figure"><h2>Probabilities</h2>
<p>Films by the probability of pneumonia, in steps of {100 * summary["probability"]["step"]:g}&nbsp;%. The scale is
logarithmic, so that single films are seen; none is no column.</p>{_probability_diagram(summary)}</section>
{
        _kinds(
            "Why verdicts were withheld",
            "One film can have several reasons.",
            "reason",
            summary["withheld"],
            rows,
        )
    }
{_kinds("What could not be judged", "Each has a row with its error.", "error", summary["errors"], rows)}
{times}
<section><h2>Runs</h2>{
        _table(
            "films/s counts judging alone, on all threads",
            ("started", "films judged", "seconds", "films/s", "threads", "listing, seconds"),
            runs,
        )
    }</section>
<section><h2>How it was made</h2>{
        _table("What stands in archive.json", ("setting", "value"), settings)
    }</section></div>"""
    return page(f"Archive of {rows:,} films", header, main, __version__)
