"""calibration.html: what came of a calibration, on one page for the doctor and the technician."""

from __future__ import annotations

import base64
import io
from collections import Counter
from collections.abc import Sequence
from html import escape

import numpy as np
from PIL import Image

from pneumo_edge import __version__
from pneumo_edge.bundle import LABELS, Bundle
from pneumo_edge.calibrate.card import POINT_COLUMNS, area_text, point_row, shown, was_rows
from pneumo_edge.calibrate.measure import wilson
from pneumo_edge.calibrate.place import GOOD_ENOUGH, GROUP, Result
from pneumo_edge.calibrate.platt import Floats, moved, probabilities
from pneumo_edge.classifier import Classifier, Failure
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.errors import ImageError
from pneumo_edge.overlay import mark, screen_film
from pneumo_edge.report_page import page, percent, table
from pneumo_edge.svg import curve, dot, line, rectangle, svg, text

MISTAKES = 6
"""Of each kind that are shown."""
_SIDE = 420
"""Pixels of a film in the page."""
_PLOT, _LEFT, _TOP = 360, 76, 16
_NORMAL, _ILL, _BEFORE = "#0072b2", "#d55e00", "#8a949a"
_BINS = 10


def calibration_page(bundle: Bundle, result: Result, *, pictures: bool) -> str:
    """Returns the page.

    Args:
        bundle: Whose files have judged the films.
        result: What came of it.
        pictures: Show the most confident mistakes: films of patients.
    """
    site = result.description.site
    if site is None:
        raise ValueError("a page of a place needs a bundle that was calibrated there")
    good = result.auc.low >= GOOD_ENOUGH
    colour = "#117733" if good else _ILL
    films = ", ".join(f"{site.films.get(label, 0):,} {label}" for label in LABELS)
    privacy = " It shows films of patients: keep it where those may be kept." if pictures else ""
    header = f"""<h1>{escape(result.description.name)} at {escape(site.name)}</h1>
<p>Calibrated on {site.calibrated}: {films} films of {site.patients:,} patients, with {escape(result.file)}.</p>
<p class="note" style="border-color:{colour}"><strong>{escape(result.verdict)}</strong></p>
<p><strong>{NOT_A_DIAGNOSIS}</strong>{privacy}</p>"""
    default = result.description.default_operating_point
    worth = result.worths[default]
    cards = "".join(
        f'<div class="card"><b>{name}</b><strong>{percent(share.value)}</strong>'
        f"<span>{percent(share.low)} to {percent(share.high)}</span></div>"
        for name, share in (
            ("sensitivity", worth.sensitivity),
            ("specificity", worth.specificity),
            ("PPV", worth.ppv),
            ("NPV", worth.npv),
        )
    )
    remarks = "".join(f"<li>{escape(each)}</li>" for each in _remarks(result))
    mistakes = _mistakes(bundle, result) if pictures else "<p>Left out: --no-pictures.</p>"
    main = f"""<section><h2>In short</h2>
<p>At the operating point <b>{escape(default)}</b>, where {percent(site.prevalence)} of the films show pneumonia:</p>
<div class="cards">{cards}</div></section>
<section><h2>Operating points</h2>
<p>Sensitivity: of the films with pneumonia, how many are called so. Specificity: of the normal ones, how many are not.
PPV and NPV: how often PNEUMONIA and NORMAL are right, at a prevalence of {percent(site.prevalence)}. Each film was
judged by a threshold that films of other patients had chosen. In brackets 95&nbsp;% intervals by patient.</p>
{_table("Choose one with --operating-point NAME", POINT_COLUMNS, [point_row(result, name) for name in result.worths])}
</section>
<section class="figure"><h2>Telling pneumonia from normal</h2><div class="panels">
<figure>{_roc(result)}<figcaption>The ROC curve: each point on it is a threshold; dots are the operating points.
Area {result.auc.value:.3f} ({result.auc.low:.3f} to {result.auc.high:.3f}).</figcaption></figure>
<figure>{_scores(result)}<figcaption>Films by their probability of pneumonia: blue NORMAL, orange PNEUMONIA, the dashed
line the threshold {escape(default)}.</figcaption></figure></div></section>
<section class="figure"><h2>Do probabilities mean what they say?</h2>
<div class="panels"><figure>{_reliability(result, before=True)}<figcaption>Before: as the bundle was.</figcaption>
</figure>
<figure>{_reliability(result, before=False)}<figcaption>Now, each film by the others.</figcaption></figure></div>
<p>On the diagonal, of ten films with a probability of 70&nbsp;% seven show pneumonia. Bars are 95&nbsp;% intervals. The
expected calibration error was {result.ece_before:.3f}, would be {result.ece_moved:.3f} had the bundle been told the
prevalence of these films alone, and is {result.ece_after:.3f} now. With few films chance alone gives some.</p>
{_table("What changed", ("", "before", "now"), was_rows(result))}</section>
{_groups(result)}
<section><h2>Films without a verdict</h2>{_withheld(result)}</section>
<section><h2>The most confident mistakes</h2>{mistakes}</section>
<section><h2>What to bear in mind</h2><ul>{remarks}</ul></section>"""
    return page(f"{result.description.name} at {site.name}".replace("<", ""), header, main, __version__)


def _table(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(escape(caption), [escape(each) for each in header], ([escape(each) for each in row] for row in rows))


def _remarks(result: Result) -> list[str]:
    said = list(result.remarks)
    if result.not_run:
        said.append(f"Not asked, since their engine is not installed here: {', '.join(result.not_run)}.")
    said.append("Labels are taken as true: where they are wrong, so is this page. Repeat it when the machine changes.")
    return said


# ------------------------------------------------------------------------------------------------------ the diagrams


def _frame(across: str, up: str) -> list[str]:
    shapes = []
    for tenth in range(0, 11, 2):
        at = _PLOT * tenth / 10
        shapes += [
            line(_LEFT, _TOP + at, _LEFT + _PLOT, _TOP + at),
            line(_LEFT + at, _TOP, _LEFT + at, _TOP + _PLOT),
            text(_LEFT + at, _TOP + _PLOT + 20, f"{10 * tenth} %"),
            text(_LEFT - 8, _TOP + _PLOT - at + 5, f"{10 * tenth} %", "end"),
        ]
    shapes.append(text(_LEFT + _PLOT / 2, _TOP + _PLOT + 42, across))
    shapes.append(f'<g transform="rotate(-90 12 {_TOP + _PLOT / 2:g})">{text(12, _TOP + _PLOT / 2 + 4, up)}</g>')
    return shapes


def _place(x: float, y: float) -> tuple[float, float]:
    return _LEFT + _PLOT * x, _TOP + _PLOT * (1 - y)


def _plot(says: str, shapes: Sequence[str]) -> str:
    return svg(_LEFT + _PLOT + 24, _TOP + _PLOT + 52, says, *shapes)


def _roc(result: Result) -> str:
    answers = result.answers
    order = np.argsort(-answers.logits, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(answers.logits[order]) < 0, True))
    found = np.cumsum(answers.labels[order])[ends] / answers.labels.sum()
    alarms = np.cumsum(1 - answers.labels[order])[ends] / (1 - answers.labels).sum()
    path = [_place(0, 0), *(_place(float(x), float(y)) for x, y in zip(alarms, found, strict=True))]
    shapes = [*_frame("false alarms among NORMAL films", "found among PNEUMONIA films")]
    shapes += [line(*_place(0, 0), *_place(1, 1), "#9aa6ad", "4 4"), curve(path, "#1d2529")]
    for name, worth in result.worths.items():
        x, y = 1 - worth.specificity.value, worth.sensitivity.value
        shapes += [dot(*_place(x, y), 6, _ILL, name)]
        at = _place(x, y)
        left = x > 0.6
        shapes.append(text(at[0] + (-10 if left else 10), at[1] + 18, name, "end" if left else "start", "#1d2529", 600))
    return _plot("ROC curve with the operating points", shapes)


def _scores(result: Result) -> str:
    p, labels = result.probabilities, result.answers.labels
    steps = 20
    counts = [np.histogram(p[labels == label], steps, (0, 1))[0] for label in (0, 1)]
    top = max(1, int(max(map(max, counts))))
    shapes = [line(_LEFT, _TOP + _PLOT, _LEFT + _PLOT, _TOP + _PLOT, "#46525a")]
    wide = _PLOT / steps
    for label, colour in ((0, _NORMAL), (1, _ILL)):
        for i, count in enumerate(counts[label]):
            tall = _PLOT * 0.94 * count / top
            x = _LEFT + i * wide + (0.5 if label == 0 else wide / 2)
            says = f"{int(count)} {LABELS[label]} films of {5 * i} to {5 * i + 5} %"
            shapes.append(rectangle(x, _TOP + _PLOT - tall, wide / 2 - 0.5, tall, colour, says))
    shapes += [text(_LEFT + _PLOT * tenth / 10, _TOP + _PLOT + 20, f"{10 * tenth} %") for tenth in range(0, 11, 2)]
    shapes.append(text(_LEFT - 8, _TOP + _PLOT * 0.06 + 5, str(top), "end"))
    shapes.append(text(_LEFT - 8, _TOP + _PLOT + 5, "0", "end"))
    # The films' own prevalence, which their probabilities hold for.
    cut = result.fit.cuts[result.description.default_operating_point]
    at = float(probabilities(np.array([cut]), moved(result.fit.calibration, float(labels.mean())))[0])
    shapes.append(line(_LEFT + _PLOT * at, _TOP, _LEFT + _PLOT * at, _TOP + _PLOT, "#1d2529", "5 4"))
    shapes.append(
        text(_LEFT + _PLOT / 2, _TOP + _PLOT + 42, "probability of pneumonia, at the prevalence of these films")
    )
    return _plot("Films by probability", shapes)


def _reliability(result: Result, *, before: bool) -> str:
    labels = result.answers.labels
    p: Floats = probabilities(result.answers.logits, result.before.calibration) if before else result.probabilities
    colour = _BEFORE if before else _NORMAL
    shapes = [*_frame("probability of pneumonia", "films that show it")]
    shapes.append(line(*_place(0, 0), *_place(1, 1), "#9aa6ad", "4 4"))
    place = np.minimum((p * _BINS).astype(int), _BINS - 1)
    for i in range(_BINS):
        here = place == i
        count = int(here.sum())
        if not count:
            continue
        hits = int(labels[here].sum())
        x = float(p[here].mean())
        low, high = wilson(hits, count)
        shapes += [
            line(*_place(x, low), *_place(x, high), colour),
            dot(*_place(x, hits / count), 3 + 7 * (count / len(p)) ** 0.5, colour, f"{hits} of {count} films"),
        ]
    when = "before" if before else "now"
    return _plot(f"Reliability {when}: probability against the share of films that show pneumonia", shapes)


# ------------------------------------------------------------------------------------------------------ the sections


def _groups(result: Result) -> str:
    if not result.groups:
        return (
            "<section><h2>Groups</h2><p>The films name no groups. A manifest with columns such as age, sex, view or "
            "machine shows for whom it does worse.</p></section>"
        )
    rows = [
        (
            f"{each.column}: {each.value}",
            f"{each.normal} / {each.ill}",
            shown(each.sensitivity),
            shown(each.specificity),
            area_text(each.auc),
        )
        for each in result.groups
    ]
    told = _table(
        f"At the point {result.description.default_operating_point}; – where a group has fewer than {GROUP} films of a "
        "label",
        ("group", "NORMAL / PNEUMONIA films", "sensitivity", "specificity", "AUC"),
        rows,
    )
    return f"<section><h2>Groups</h2>{told}</section>"


def _withheld(result: Result) -> str:
    count = len(result.withheld)
    said = f"<p>{count:,} of {len(result.films):,} films get no verdict.</p>"
    if count:
        kinds = Counter((result.films[i].label, why) for i, why in result.withheld.items())
        rows = [(why, LABELS[label], str(films)) for (label, why), films in kinds.most_common()]
        said += _table("Why", ("reason", "label", "films"), rows)
    if result.limits:
        rows = [(file, f"{new.limit:.3f}", "yes" if new.bounded else "no") for file, new in result.limits.items()]
        said += _table(
            "New limits of novelty (--accept-films)",
            ("file", "limit", "held down by drawings that are no chest film"),
            rows,
        )
    elif count > 0.05 * len(result.films):
        said += (
            "<p>That is more than one in twenty. If these are good frontal chest films, calibrate again with "
            "<code>--accept-films</code>.</p>"
        )
    if result.unreadable:
        unread = [(result.films[i].name, why) for i, why in result.unreadable.items()]
        said += _table("Could not be read", ("film", "why"), unread)
    return said


def _mistakes(bundle: Bundle, result: Result) -> str:
    labels, p = result.answers.labels, result.probabilities
    called = result.called[result.description.default_operating_point]
    missed = [i for i in np.argsort(p) if labels[i] == 1 and not called[i]][:MISTAKES]
    alarms = [i for i in np.argsort(-p) if labels[i] == 0 and called[i]][:MISTAKES]
    said = ""
    with Classifier(bundle, result.file, regions="all", force_verdict=True) as classifier:
        for title, chosen in (("Missed pneumonias", missed), ("False alarms", alarms)):
            figures = "".join(_figure(classifier, result, int(i)) for i in chosen)
            said += (
                f'<h3>{title}</h3><div class="panels">{figures}</div>' if figures else f"<h3>{title}</h3><p>None.</p>"
            )
    return f"<p>Look at them together: is it the model, or the label?</p>{said}"


def _figure(classifier: Classifier, result: Result, i: int) -> str:
    film = result.films[int(result.judged[i])]
    try:
        data = film.path.read_bytes()
        answer, screen = classifier.predict(data, film.name), screen_film(data, film.name)
    except (OSError, ImageError):
        return ""
    if isinstance(answer, Failure):
        return ""
    picture = mark(screen, answer, glow=True)
    picture.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.convert("RGB").save(file, format="JPEG", quality=80)
    source = base64.b64encode(file.getvalue()).decode()
    said = f"{escape(film.name)}: labelled {LABELS[film.label]}, probability {percent(float(result.probabilities[i]))}"
    return f'<figure><img src="data:image/jpeg;base64,{source}" alt="{said}"><figcaption>{said}</figcaption></figure>'
