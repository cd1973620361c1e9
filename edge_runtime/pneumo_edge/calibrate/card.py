"""SITE.md of a calibrated bundle: whose films it was fitted to, what it gives there, and what it was before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pneumo_edge import __version__
from pneumo_edge.bundle import LABELS, Interval
from pneumo_edge.calibrate.fit import Worth
from pneumo_edge.calibrate.place import GROUP, Result
from pneumo_edge.command_line import NOT_A_DIAGNOSIS

POINT_COLUMNS = ("operating point", "pneumonia from", "sensitivity", "specificity", "PPV", "NPV", "flagged of 1,000")


def point_row(result: Result, name: str) -> tuple[str, ...]:
    """Returns the cells of an operating point, as `POINT_COLUMNS` has them."""
    description, worth = result.description, result.worths[name]
    default = " (default)" if name == description.default_operating_point else ""
    threshold = description.operating_points[name].threshold
    shares = tuple(shown(getattr(worth, each)) for each in Worth.__dataclass_fields__ if each != "flagged")
    return f"{name}{default}", f"{threshold:.1%}", *shares, per_thousand(worth.flagged)


def shown(share: Interval | None) -> str:
    """Writes a share with its interval, for people."""
    return "–" if share is None else f"{share.value:.1%} ({share.low:.1%} to {share.high:.1%})"


def area_text(area: Interval | None) -> str:
    """Writes an area under the ROC curve, for people."""
    return "–" if area is None else f"{area.value:.2f} ({area.low:.2f} to {area.high:.2f})"


def per_thousand(share: Interval) -> str:
    """Writes how many of a thousand films, for people."""
    return f"{1000 * share.value:.0f} ({1000 * share.low:.0f} to {1000 * share.high:.0f})"


def was_rows(result: Result) -> list[tuple[str, str, str]]:
    """Returns what the bundle said before beside what it says now: name, before, now."""
    site, now = result.description.site, result.description
    if site is None:
        return []
    rows = [
        (f"calibration: {name}", f"{getattr(site.was, name):.4f}", f"{getattr(now.calibration, name):.4f}")
        for name in ("scale", "offset", "prevalence")
    ]
    for name, point in site.was_operating_points.items():
        new = now.operating_points.get(name)
        rows.append((f"threshold {name}", f"{point.threshold:.4f}", "–" if new is None else f"{new.threshold:.4f}"))
    return rows


def site_card(result: Result) -> str:
    """Returns the card as Markdown."""
    description = result.description
    site = description.site
    if site is None:
        raise ValueError("a card of a place needs a bundle that was calibrated there")
    films = ", ".join(f"{site.films.get(label, 0)} {label}" for label in LABELS)
    points = [point_row(result, name) for name in result.worths]
    reasons = Counter(result.withheld.values())
    lines = [
        f"# {description.name} at {site.name}",
        "",
        f"**{NOT_A_DIAGNOSIS}**",
        "",
        f"**{result.verdict}**",
        "",
        f"Calibrated on {site.calibrated} by pneumo {__version__} with {result.file}, on {films} films of "
        f"{site.patients} patients. Probabilities hold where {site.prevalence:.1%} of the films show pneumonia.",
        "",
        "## Operating points",
        "Each film was judged by a calibration and a threshold that films of other patients had chosen (10 folds). "
        f"95 % intervals by patient. PPV, NPV and flagged films at a prevalence of {site.prevalence:.1%}.",
        "",
        *_table(POINT_COLUMNS, points),
        "",
        "## Calibration",
        f"Expected calibration error (15 bins) on these films: {result.ece_before:.3f} as the bundle was, "
        f"{result.ece_moved:.3f} when told their prevalence, {result.ece_after:.3f} now (cross-fitted).",
        "",
        *_table(("", "before", "now"), was_rows(result)),
        "",
        "## No verdict",
        f"{len(result.withheld)} of {len(result.films)} films get no verdict.",
        *[f"- {count}: {why}" for why, count in reasons.most_common()],
        *[
            f"- limit of novelty of {file}: {limit.limit:.3f}"
            + (", held down so that drawings that are no chest film stay out" if limit.bounded else "")
            for file, limit in result.limits.items()
        ],
        f"- {len(result.unreadable)} films could not be read." if result.unreadable else "",
        "",
    ]
    if result.groups:
        rows = [
            (
                f"{each.column}: {each.value}",
                str(each.normal),
                str(each.ill),
                shown(each.sensitivity),
                shown(each.specificity),
                area_text(each.auc),
            )
            for each in result.groups
        ]
        lines += [
            "## Groups",
            f"At the point {description.default_operating_point}; where a group has {GROUP} films of each label.",
            "",
            *_table(("group", *LABELS, "sensitivity", "specificity", "AUC"), rows),
            "",
        ]
    lines += ["## Remarks", *[f"- {each}" for each in result.remarks]]
    if result.not_run:
        lines.append(
            f"- Not asked, since their engine is not installed here: {', '.join(result.not_run)}. They have the same "
            "calibration, their limit of novelty from before, and nothing to watch themselves by."
        )
    return "\n".join(lines).rstrip() + "\n"


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    return [
        f"| {' | '.join(header)} |",
        f"| {' | '.join(['---'] * len(header))} |",
        *[f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows],
    ]
