"""report.html of a run: one file, no network, for a doctor and an engineer; its figures also as PNG.

`curves.png`, `confusion.png`, `roc_pr.png`, `reliability.png` and `scores.png` show numbers alone and may go anywhere;
`mistakes.png` and `augmentation.png` show films.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from pneumo_edge.atomic import replacing_file, write_text
from pneumo_edge.bundle import LABELS
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.overlay import FULL_EVIDENCE, colour_heatmap
from pneumo_train.augment import augment
from pneumo_train.measure import ECE_BINS, wilson
from pneumo_train.perturb import perturb
from pneumo_train.run import (
    Config,
    Films,
    RunFilms,
    load_films,
    load_model,
    model_path,
    read_config,
    read_metrics,
    read_rows,
)
from pneumo_train.split import LEFT_ASIDE, LEFT_OUT, TEST, TRAIN, UNREADABLE, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERTURBED = f"{VALIDATION}_perturbed"
_NAMES = {VALIDATION: "validation", PERTURBED: "perturbed", TEST: "test"}

# Told apart by colour-blind eyes (Okabe and Ito; Tol) and, by line or hatching, in a grey print.
_CLASS_COLOURS = ("#0072b2", "#d55e00")
_LINES = {TRAIN: ("#6b767d", ":"), VALIDATION: ("#332288", "-"), PERTURBED: ("#aa4499", "--"), TEST: ("#117733", "-.")}
_MARKERS = {"balanced": "o", "screening": "s"}
_THRESHOLD_LINES = {"balanced": "--", "screening": ":"}

_MISTAKES = 6
"""Of each kind."""
_AUGMENTED = 6
"""Copies of each of three films."""


class _Part(NamedTuple):
    """Films that were judged: their scores, and what `metrics.json` says of them."""

    key: str
    labels: npt.NDArray[np.int64]
    p: npt.NDArray[np.float64]
    measure: dict[str, Any]

    @property
    def name(self) -> str:
        return _NAMES[self.key]


class _Panel(NamedTuple):
    """One diagram; `alt` says in words what it shows."""

    alt: str
    draw: Callable[[Axes], None]


class _Figure(NamedTuple):
    """Panels that belong together: side by side in the PNG, below each other on a phone."""

    name: str
    title: str
    caption: str
    panels: list[_Panel]


def write_report(run: Path) -> None:
    """Draws the figures of a finished run and writes `report.html`.

    Raises:
        RunError: The run is not finished, or its films are gone.
    """
    config, metrics = read_config(run), read_metrics(run)
    history, predictions = read_rows(run / "history.csv"), read_rows(run / "predictions.csv")
    films = load_films(run, config)
    parts = [_part(key, predictions, metrics[key]) for key in _NAMES if metrics[key]]
    figures = [_confusions(parts), _roc_pr(parts), _scores(parts), _reliability(parts), _curves(history)]
    diagrams = []
    for figure in figures:
        drawn = _drawn(figure.panels)
        _write(run / f"{figure.name}.png", _encoded(_side_by_side(drawn)))
        diagrams.append(_section(figure, drawn))
    mistakes = _Mistakes(run, films.part(VALIDATION), parts[0], metrics["operating_points"]["balanced"]["threshold"])
    if mistakes.shown:
        _write(run / "mistakes.png", _encoded(mistakes.sheet()))
    else:
        (run / "mistakes.png").unlink(missing_ok=True)
    copies = _augmented(films.part(TRAIN), config.seed)
    sheet = _sheet([(picture, name) for row in copies for picture, name in row], columns=len(copies[0]), side=130)
    _write(run / "augmentation.png", _encoded(sheet))
    write_text(run / "report.html", _page(run, config, metrics, films, parts, diagrams, mistakes, copies))


def _part(key: str, predictions: list[dict[str, str]], measured: dict[str, Any]) -> _Part:
    rows = [r for r in predictions if r["split"] == key]
    labels = np.array([LABELS.index(r["label"]) for r in rows])
    return _Part(key, labels, np.array([float(r["probability"]) for r in rows]), measured)


# ------------------------------------------------------------------------------------------------------ the diagrams


def _drawn(panels: Sequence[_Panel]) -> list[Image.Image]:
    """Draws each panel, all of one size."""
    # Not pyplot: its global state belongs to the user's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawn = []
    for panel in panels:
        figure = Figure(figsize=(3.9, 3.5), layout="constrained", dpi=190)
        FigureCanvasAgg(figure)
        axis = figure.add_subplot()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        panel.draw(axis)
        axis.title.set_fontsize(11)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
        with Image.open(buffer) as png:
            drawn.append(png.convert("RGB"))
    return drawn


def _side_by_side(drawn: Sequence[Image.Image]) -> Image.Image:
    width, height = drawn[0].size
    row = Image.new("RGB", (width * len(drawn), height), "white")
    for i, picture in enumerate(drawn):
        row.paste(picture, (i * width, 0))
    return row


def _curves(history: list[dict[str, str]]) -> _Figure:
    epochs = [int(r["epoch"]) for r in history]
    best = epochs[int(np.argmax([float(r["perturbed_auc"]) for r in history]))]

    def draw(axis: Axes, title: str, lines: dict[str, str]) -> None:
        from matplotlib.ticker import MaxNLocator

        for key, column in lines.items():
            colour, style = _LINES[key]
            values = [float(r[column]) for r in history]
            name = "training" if key == TRAIN else _NAMES[key]
            axis.plot(epochs, values, style, marker="o", markersize=3.5, color=colour, label=name)
        axis.axvline(best, color="#9aa3a8", linewidth=5, alpha=0.4, zorder=0, label="epoch that was kept")
        axis.set(title=title, xlabel="epoch")
        axis.set_xlim(epochs[0] - 0.5, epochs[-1] + 0.5)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(fontsize=9, framealpha=0.85, edgecolor="none")

    series = {
        "Loss": {TRAIN: "loss", VALIDATION: "val_loss", PERTURBED: "perturbed_loss"},
        "Accuracy at logit 0": {TRAIN: "accuracy", VALIDATION: "val_accuracy", PERTURBED: "perturbed_accuracy"},
        "AUC": {VALIDATION: "val_auc", PERTURBED: "perturbed_auc"},
    }
    return _Figure(
        "curves",
        "Loss and accuracy: how it learned",
        "Each epoch is one pass over the training films. Training films are shown augmented, with label smoothing and "
        "dropout, so their loss stands higher and is no sign of ill health. The grey band marks what was kept, epoch "
        f"{best} of {len(epochs)}: the one with the largest AUC on the perturbed validation films.",
        [
            _Panel(
                f"{title} of every epoch, {len(epochs)} in all; epoch {best} was kept",
                partial(draw, title=title, lines=lines),
            )
            for title, lines in series.items()
        ],
    )


def _confusions(parts: list[_Part]) -> _Figure:
    def draw(axis: Axes, part: _Part) -> None:
        table = np.array(part.measure["operating_points"]["balanced"]["confusion"])
        shares = table / table.sum(axis=1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        words = (("right", "false alarm"), ("missed", "right"))
        for (i, j), count in np.ndenumerate(table):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i - 0.09, str(count), ha="center", va="center", color=colour, fontsize=16)
            below = f"{words[i][j]}, {_percent(shares[i, j])}"
            axis.text(j, i + 0.16, below, ha="center", va="center", color=colour, fontsize=9.5)
        axis.set(title=part.name.capitalize(), xlabel="the model says", ylabel="the film is labelled")
        axis.set(xticks=[0, 1], yticks=[0, 1], xticklabels=LABELS)
        axis.set_yticklabels(LABELS, rotation=90, va="center")
        axis.grid(visible=False)

    panels = []
    for part in parts:
        (tn, fp), (fn, tp) = part.measure["operating_points"]["balanced"]["confusion"]
        alt = f"{part.name}: {tp} pneumonias found, {fn} missed; {tn} normal films called normal, {fp} false alarms"
        panels.append(_Panel(alt, partial(draw, part=part)))
    return _Figure(
        "confusion",
        "Confusion matrix: right and wrong",
        "Films by label and verdict at the balanced operating point; percentages are of the films of that label.",
        panels,
    )


def _roc_pr(parts: list[_Part]) -> _Figure:
    # Good models crowd into a corner: it is shown enlarged.
    near = min(part.measure["auc"]["value"] for part in parts) > 0.9

    def roc(axis: Axes) -> None:
        from sklearn.metrics import roc_curve

        axis.plot([0, 1], [0, 1], color="#9aa3a8", linewidth=1, zorder=0)
        for target in (axis, axis.inset_axes((0.36, 0.38, 0.61, 0.46), xlim=(-0.01, 0.26), ylim=(0.74, 1.01)))[
            : 1 + near
        ]:
            for part in parts:
                colour, style = _LINES[part.key]
                x, y, _ = roc_curve(part.labels, part.p, drop_intermediate=False)
                target.plot(x, y, style, color=colour, label=f"{part.name}: AUC {part.measure['auc']['value']:.3f}")
                for name, point in part.measure["operating_points"].items():
                    mark(target, 1 - point["specificity"]["value"], point["sensitivity"]["value"], name, colour)
        finish(axis, "ROC", "false alarms: 1 - specificity", "sensitivity", "lower right")

    def pr(axis: Axes) -> None:
        from sklearn.metrics import precision_recall_curve

        for target in (axis, axis.inset_axes((0.13, 0.38, 0.61, 0.46), xlim=(0.74, 1.01), ylim=(0.74, 1.01)))[
            : 1 + near
        ]:
            for part in parts:
                colour, style = _LINES[part.key]
                y, x, _ = precision_recall_curve(part.labels, part.p)
                label = f"{part.name}: AP {part.measure['average_precision']['value']:.3f}"
                target.plot(x, y, style, color=colour, label=label)
                for name, point in part.measure["operating_points"].items():
                    mark(target, point["sensitivity"]["value"], point["precision"]["value"], name, colour)
        finish(axis, "Precision and recall", "recall = sensitivity", "precision", "lower left")

    def mark(axis: Axes, x: float, y: float, name: str, colour: str) -> None:
        axis.plot(x, y, _MARKERS[name], color=colour, markeredgecolor="white", markersize=8, zorder=3)

    def finish(axis: Axes, title: str, x: str, y: str, place: Literal["lower left", "lower right"]) -> None:
        axis.set(title=title, xlabel=x, ylabel=y, xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        for inset in axis.child_axes:
            inset.grid(alpha=0.25)
            inset.tick_params(labelsize=8)
            inset.set(title="the corner, enlarged")
            inset.title.set_fontsize(8.5)
        axis.legend(fontsize=8.5, framealpha=0.85, edgecolor="none", loc=place)

    areas = "; ".join(f"{part.name} {part.measure['auc']['value']:.3f}" for part in parts)
    precisions = "; ".join(f"{part.name} {part.measure['average_precision']['value']:.3f}" for part in parts)
    return _Figure(
        "roc_pr",
        "ROC and precision-recall: every threshold",
        "Circles are the balanced operating point, squares the screening one. AUC is the chance that a film with "
        "pneumonia scores above one without. Precision depends on how many films show pneumonia: "
        + "; ".join(f"{_percent(part.measure['prevalence'])} in {part.name}" for part in parts)
        + ".",
        [_Panel(f"ROC curves; AUC: {areas}", roc), _Panel(f"Precision-recall; average precision: {precisions}", pr)],
    )


def _reliability(parts: list[_Part]) -> _Figure:
    def draw(axis: Axes, part: _Part) -> None:
        place = np.minimum((part.p * ECE_BINS).astype(int), ECE_BINS - 1)
        axis.plot([0, 1], [0, 1], color="#6b767d", linestyle=":")
        colour = _LINES[part.key][0]
        for b in np.unique(place):
            inside = place == b
            n, ill = int(inside.sum()), int(part.labels[inside].sum())
            low, high = wilson(ill, n)
            x = float(part.p[inside].mean())
            axis.plot([x, x], [low, high], color=colour, alpha=0.35, linewidth=1.5)
            axis.plot(x, ill / n, "o", color=colour, markersize=min(14, 3 + 0.8 * n**0.5), markeredgecolor="white")
        axis.set(title=f"{part.name.capitalize()}: ECE {part.measure['ece']['value']:.3f}")
        axis.set(xlabel="probability of pneumonia, as told", ylabel="share with pneumonia, as labelled")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))

    return _Figure(
        "reliability",
        "Reliability: does 80 % mean 80 %?",
        f"Films are grouped by the probability that the model told, in {ECE_BINS} equal steps. On the dotted line the "
        "probability is right; above it pneumonia was more common than told, below it rarer. Larger dots stand for "
        "more films; bars are Wilson's 95 % intervals, wide for few films. ECE is the mean distance from the line.",
        [_Panel(f"Reliability, {p.name}: ECE {p.measure['ece']['value']:.3f}", partial(draw, part=p)) for p in parts],
    )


def _scores(parts: list[_Part]) -> _Figure:
    def draw(axis: Axes, part: _Part) -> None:
        edges = np.linspace(0, 1, 31)
        for label, sign, hatch in ((1, 1, ""), (0, -1, "////")):
            counts, _ = np.histogram(part.p[part.labels == label], edges)
            axis.bar(
                edges[:-1], sign * counts, np.diff(edges), align="edge", color=_CLASS_COLOURS[label],
                edgecolor="white", linewidth=0.5, hatch=hatch,
            )  # fmt: skip
            axis.text(
                0.5, 0.97 if label else 0.03, f"labelled {LABELS[label]}", color=_CLASS_COLOURS[label], weight="bold",
                ha="center", va="top" if label else "bottom", transform=axis.transAxes,
            )  # fmt: skip
        for name, point in part.measure["operating_points"].items():
            axis.axvline(point["threshold"], color="black", linewidth=1.2, linestyle=_THRESHOLD_LINES[name], label=name)
        most = 10 ** np.ceil(np.log10(max(10, *np.histogram(part.p, edges)[0])))
        axis.set_yscale("symlog", linthresh=1)
        ticks = [t for t in (1, 10, 100, 1000, 10_000, 100_000) if t <= most]
        axis.set_yticks([-t for t in reversed(ticks)] + [0, *ticks], minor=False)
        axis.set_yticklabels([str(t) for t in reversed(ticks)] + ["0", *map(str, ticks)])
        axis.minorticks_off()
        axis.axhline(0, color="black", linewidth=0.8)
        axis.set(title=part.name.capitalize(), xlabel="probability of pneumonia", ylabel="films", ylim=(-most, most))
        axis.set_xlim(0, 1)
        axis.legend(title="thresholds", loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False)

    return _Figure(
        "scores",
        "Scores: what it said of which films",
        "Films with pneumonia point up, normal ones down; the scale is logarithmic, so that single films are seen. "
        "What stands right of a threshold is called PNEUMONIA: above the axis to its left are the missed ones, below "
        "the axis to its right the false alarms.",
        [_Panel(f"Histogram of the probabilities by label, {p.name}", partial(draw, part=p)) for p in parts],
    )


# --------------------------------------------------------------------------------------------- pictures that show films


class _Mistakes:
    """The most confident mistakes on the validation films as they are, of both kinds, with their heatmaps.

    Never on test films: who has looked at those cannot choose blindly any more.
    """

    def __init__(self, run: Path, films: Films, part: _Part, threshold: float) -> None:
        called = part.p >= threshold
        self.kinds: list[tuple[str, npt.NDArray[np.intp], int]] = []
        for title, label in (("Pneumonia that was missed", 1), ("False alarms", 0)):
            wrong = np.flatnonzero((part.labels == label) & (called != (label == 1)))
            worst = wrong[np.argsort(-np.abs(part.p[wrong] - threshold), kind="stable")][:_MISTAKES]
            self.kinds.append((title, worst, len(wrong)))
        self.shown = [int(i) for _, worst, _ in self.kinds for i in worst]
        self.pictures: dict[int, tuple[Image.Image, Image.Image]] = {}
        self.words = {
            i: f"labelled {LABELS[part.labels[i]]}, called {LABELS[int(called[i])]} at {_percent(part.p[i], 0)}"
            for i in self.shown
        }
        self.names = {i: Path(films.paths[i]).name for i in self.shown}
        if not self.shown:
            return
        import keras

        from pneumo_train.explain import explained

        model = explained(load_model(model_path(run)))
        chosen = films.pixels[self.shown][..., np.newaxis].astype(np.float32)
        heatmaps = keras.ops.convert_to_numpy(model.predict_on_batch(chosen)["heatmap"])
        for i, heatmap in zip(self.shown, heatmaps, strict=True):
            film = Image.fromarray(films.pixels[i]).resize((224, 224), Image.Resampling.BICUBIC)
            self.pictures[i] = film, colour_heatmap(film, heatmap)

    def sheet(self) -> Image.Image:
        cells = []
        for i in self.shown:
            film, heatmap = self.pictures[i]
            cells += [(film, self.words[i].split(",")[0]), (heatmap, self.words[i].split(", ")[1])]
        return _sheet(cells, columns=6, side=224)

    def section(self) -> str:
        text = []
        for title, worst, count in self.kinds:
            cards = "".join(self._card(int(i)) for i in worst)
            number = f"{len(worst)} of {count}, the most confident first" if count else "none"
            text.append(f'<h3>{title}: {number}</h3><div class="pairs">{cards}</div>')
        return "".join(text)

    def _card(self, i: int) -> str:
        film, heatmap = self.pictures[i]
        words, name = html.escape(self.words[i]), html.escape(self.names[i])
        return (
            f'<figure><div class="pair">{_img(_encoded(film), f"Film {name}: {words}")}'
            f"{_img(_encoded(heatmap), 'The same film with the heatmap')}</div>"
            f"<figcaption>{words[0].upper()}{words[1:]}<br><small>{name}</small></figcaption></figure>"
        )


def _augmented(train: Films, seed: int) -> list[list[tuple[Image.Image, str]]]:
    """Returns a row of pictures with their names for each of three films."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in rng.choice(len(train.files), min(3, len(train.files)), replace=False):
        film = train.pixels[i]
        row = [(film, "as it is")] + [(augment(film, rng), "augmented") for _ in range(_AUGMENTED)]
        row.append((perturb(film, train.paths[i]), "perturbed"))
        rows.append([(Image.fromarray(picture), name) for picture, name in row])
    return rows


def _sheet(pictures: Sequence[tuple[Image.Image, str]], columns: int, side: int) -> Image.Image:
    high = side + 22
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * (side + 6) + 6, rows * high + 6), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for i, (picture, words) in enumerate(pictures):
        left, top = 6 + (i % columns) * (side + 6), 6 + (i // columns) * high
        sheet.paste(picture.convert("RGB").resize((side, side)), (left, top))
        draw.text((left, top + side + 1), words.replace("\N{NO-BREAK SPACE}", " "), fill=(29, 37, 41), font=font)
    return sheet


def _encoded(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _write(path: Path, data: bytes) -> None:
    with replacing_file(path) as temporary:
        temporary.write_bytes(data)


def _img(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


# ----------------------------------------------------------------------------------------------------------- the page


def _percent(share: float, digits: int = 1) -> str:
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"


def _decimal(value: float) -> str:
    return f"{value:.3f}"


def _cell(value: dict[str, float], shown: Callable[[float], str]) -> str:
    """A value above its interval, and above Wilson's where there is one."""
    text = f"{shown(value['value'])} {_small(value['low'], value['high'], shown)}"
    if "wilson_low" in value:
        text += f" {_small(value['wilson_low'], value['wilson_high'], shown, 'W ')}"
    return text


def _small(low: float, high: float, shown: Callable[[float], str], before: str = "") -> str:
    # Without its unit, which the value has, and with a dash: three such columns must go on a phone.
    bare = [shown(limit).removesuffix("%").rstrip() for limit in (low, high)]
    return f"<small>{before}{bare[0]}\N{EN DASH}{bare[1]}</small>"


def _interval(low: float, high: float, shown: Callable[[float], str]) -> str:
    return f"{shown(low).removesuffix('%').rstrip()} to {shown(high)}"


def _table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f'<th scope="col">{h}</th>' for h in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{c}</td>" for c in row[1:]) + "</tr>" for row in rows
    )
    table = f"<table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{table}</div>'


def _headline(parts: list[_Part]) -> str:
    judged = parts[-1] if parts[-1].key == TEST else parts[0]
    point = judged.measure["operating_points"]["balanced"]
    found, spared = point["sensitivity"], point["specificity"]
    cards = []
    for title, key, shown in (
        ("Accuracy", "accuracy", _percent),
        ("Sensitivity", "sensitivity", _percent),
        ("Specificity", "specificity", _percent),
        ("AUC", "auc", _decimal),
    ):
        values = {p.key: p.measure.get(key) or p.measure["operating_points"]["balanced"][key] for p in parts}
        value = values[judged.key]
        others = "".join(
            f"<span>on {p.name}: {shown(values[p.key]['value'])}</span>" for p in parts if p.key != judged.key
        )
        cards.append(
            f'<div class="card"><b>{title}</b><strong>{shown(value["value"])}</strong>'
            f"<span>{_interval(value['low'], value['high'], shown)}</span>{others}</div>"
        )
    return (
        f'<p class="lead">Of 100 films with pneumonia it finds {100 * found["value"]:.0f} '
        f"({100 * found['low']:.0f} to {100 * found['high']:.0f}); of 100 normal films it calls "
        f"{100 * (1 - spared['value']):.0f} ({100 * (1 - spared['high']):.0f} to {100 * (1 - spared['low']):.0f}) "
        f"pneumonia.</p>"
        f"<p>Measured on {judged.measure['n']} {judged.name} films of {judged.measure['patients']} patients, "
        f"{_percent(judged.measure['prevalence'])} with pneumonia, at the balanced operating point.</p>"
        f'<div class="cards">{"".join(cards)}</div>'
    )


_MEASURES = {
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity = recall",
    "specificity": "Specificity",
    "precision": "Precision",
    "f1": "F1",
}
_SCORES = {
    "auc": "AUC",
    "average_precision": "Average precision",
    "brier": "Brier score, 0 is best",
    "ece": "Calibration error (ECE), 0 is best",
}
_POINT_WORDS = {
    "balanced": "largest sensitivity + specificity, by the calibration",
    "screening": "highest threshold that finds at least 98 % of the pneumonias",
}


def _measures(metrics: dict[str, Any], parts: list[_Part]) -> str:
    columns = ["", *(f"{p.name}<small>{p.measure['n']} films, {p.measure['patients']} patients</small>" for p in parts)]
    tables = []
    for name, point in metrics["operating_points"].items():
        at = [p.measure["operating_points"][name] for p in parts]
        rows = [[words, *(_cell(a[key], _percent) for a in at)] for key, words in _MEASURES.items()]
        for words, (i, j) in {
            "Pneumonia found (TP)": (1, 1), "Pneumonia missed (FN)": (1, 0),
            "Normal called normal (TN)": (0, 0), "False alarms (FP)": (0, 1),
        }.items():  # fmt: skip
            rows.append([words, *(str(a["confusion"][i][j]) for a in at)])
        caption = f"Operating point <b>{name}</b>, PNEUMONIA from {_percent(point['threshold'])}: {_POINT_WORDS[name]}"
        tables.append(_table(caption, columns, rows))
    rows = [[words, *(_cell(p.measure[key], _decimal) for p in parts)] for key, words in _SCORES.items()]
    tables.append(_table("Without a threshold", columns, rows))
    return "".join(tables)


def _predictive(judged: _Part) -> str:
    points = judged.measure["operating_points"]

    def cell(value: dict[str, float], key: str) -> str:
        text = _percent(value[key])
        if f"{key}_low" in value:  # runs of earlier versions have none
            text += f" {_small(value[f'{key}_low'], value[f'{key}_high'], _percent)}"
        return text

    rows = []
    for values in zip(*(point["ppv_npv"] for point in points.values()), strict=True):
        cells = [cell(value, key) for value in values for key in ("ppv", "npv")]
        rows.append([_percent(values[0]["prevalence"], 0), *cells])
    header = ["Share", *(f"{key}<small>{name}</small>" for name in points for key in ("PPV", "NPV"))]
    return _table(f"Predictive values by the share of films with pneumonia, from {judged.name}", header, rows)


def _make_up(films: RunFilms) -> str:
    rows = []
    for part in [p for p in (TRAIN, VALIDATION, TEST, LEFT_OUT, *LEFT_ASIDE) if p in films.split]:
        chosen = [films.files[i] for i in films.positions(part)]
        ill = sum(f.label for f in chosen)
        share = f"<small>{_percent(ill / len(chosen))}</small>"
        patients = len({f.patient for f in chosen})
        rows.append([part, str(len(chosen) - ill), f"{ill} {share}", str(len(chosen)), str(patients)])
    skipped = [films.files[i].path for i in films.positions(UNREADABLE)]
    text = _table("Films by use", ["", *LABELS, "films", "patients"], rows)
    if skipped:
        named = ", ".join(html.escape(path) for path in skipped[:20]) + (" and more" if len(skipped) > 20 else "")
        text += f'<p class="long">Skipped, because they could not be read ({len(skipped)}): {named}.</p>'
    return text


def _settings(config: Config) -> str:
    rows = []
    for key, value in vars(config).items():
        # Where the films lay is nobody's business who reads the report.
        if key in {"data", "format_version"}:
            continue
        if isinstance(value, dict):
            shown = ", ".join(f"{name} {number}" for name, number in value.items())
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value)) or "none"
        else:
            shown = "none" if value is None else str(value)
        rows.append([key.replace("_", " "), f'<span class="long">{html.escape(shown)}</span>'])
    return _table("What stands in config.json", ["setting", "value"], rows)


def _section(figure: _Figure, drawn: Sequence[Image.Image]) -> str:
    panels = "".join(_img(_encoded(d), panel.alt) for panel, d in zip(figure.panels, drawn, strict=True))
    return (
        f'<section class="figure"><h2>{figure.title}</h2><p>{figure.caption}</p>'
        f'<div class="panels">{panels}</div></section>'
    )


def _legend() -> str:
    """The colours of a heatmap over grey, from no evidence to full."""
    strip = colour_heatmap(Image.new("L", (240, 14), 110), np.linspace(0, FULL_EVIDENCE, 24, dtype=np.float32)[None])
    return f'<span class="legend">none {_img(_encoded(strip), "colours from dark violet to yellow")} strong</span>'


def _copies(rows: list[list[tuple[Image.Image, str]]]) -> str:
    cells = []
    for number, row in enumerate(rows, start=1):
        for picture, name in row:
            small = picture.resize((min(160, picture.width),) * 2, Image.Resampling.BICUBIC)
            cells.append(
                f"<figure>{_img(_encoded(small), f'film {number}, {name}')}<figcaption>{name}</figcaption></figure>"
            )
    return f'<div class="sheet">{"".join(cells)}</div>'


_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
  color: #1d2529; background: #fff; max-width: 66rem; margin: 0 auto; padding: 1.2rem 1rem 3rem;
  overflow-wrap: break-word; }
p, .note { max-width: 46rem; }
h1 { margin: 0; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .6rem; font-size: 1.35rem; border-bottom: 2px solid #d5dbde; padding-bottom: .25rem; }
h3 { margin: 1.4rem 0 .5rem; font-size: 1.05rem; }
.note { background: #fdf3e3; border-left: 5px solid #d55e00; padding: .7rem 1rem; }
.lead { font-size: 1.25rem; line-height: 1.4; margin-bottom: .4rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(10rem, 1fr)); gap: .8rem; margin: 1rem 0; }
.card { background: #f2f5f7; border-radius: .5rem; padding: .8rem 1rem; }
.card > * { display: block; } .card b { font-weight: 600; }
.card strong { font-size: 1.8rem; line-height: 1.25; } .card span { color: #46525a; font-size: .85rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: 1.4rem 0; }
caption { text-align: left; padding: .3rem 0; color: #46525a; } caption b { color: #1d2529; }
th, td { text-align: left; padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e1e6e9; vertical-align: top; }
thead th { border-bottom: 2px solid #9aa6ad; } tbody th { font-weight: 500; }
td small, th small { display: inline-block; font-weight: 400; font-size: .8rem; line-height: 1.35;
  white-space: nowrap; } td small { margin-left: .35rem; } th small { display: block; white-space: normal; }
small { color: #46525a; } code { white-space: nowrap; } .long { overflow-wrap: anywhere; }
.wide { overflow-x: auto; } figure { margin: 0; } img { max-width: 100%; height: auto; vertical-align: top; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 19rem), 1fr)); gap: 1rem;
  margin: 1rem 0; } .panels img { width: 100%; max-width: 32rem; }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); gap: 1.2rem; }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; } .pair img { width: 100%; }
figcaption { font-size: .88rem; line-height: 1.4; padding-top: .2rem; }
.sheet { display: grid; grid-template-columns: repeat(8, 1fr); gap: .5rem; } .sheet img { width: 100%; }
.sheet figcaption { font-size: .78rem; color: #46525a; }
.legend { white-space: nowrap; } .legend img { width: 8rem; height: .9rem; vertical-align: middle; }
footer { margin-top: 3rem; border-top: 2px solid #d5dbde; padding-top: .6rem; color: #46525a; font-size: .9rem; }
@media (max-width: 40rem) {
  body { font-size: 15px; } h2 { font-size: 1.2rem; } .lead { font-size: 1.1rem; }
  .cards { grid-template-columns: 1fr 1fr; } .card { padding: .6rem .7rem; } .card strong { font-size: 1.45rem; }
  table { font-size: .87rem; } th, td { padding-right: .45rem; }
  td small { display: block; margin: 0; font-size: .7rem; letter-spacing: -.01em; }
  .sheet { grid-template-columns: repeat(4, 1fr); }
}
@media print {
  @page { size: A4; margin: 15mm; }
  body { max-width: none; padding: 0; font-size: 10pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  p, .note { max-width: none; } h2 { margin-top: 1.6rem; } h2, h3, caption { break-after: avoid; }
  .cards, .figure, figure, tr, .note { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 9pt; margin: .8rem 0; }
  th, td { padding-top: .2rem; padding-bottom: .2rem; } td small, th small { font-size: 7.5pt; }
  .cards { grid-template-columns: repeat(4, 1fr); }
  .panels { grid-template-columns: repeat(auto-fit, minmax(12.5rem, 1fr)); } .panels img { max-width: 9cm; }
  .pairs { grid-template-columns: 1fr 1fr; }
}
"""


def _page(
    run: Path,
    config: Config,
    metrics: dict[str, Any],
    films: RunFilms,
    parts: list[_Part],
    diagrams: list[str],
    mistakes: _Mistakes,
    copies: list[list[tuple[Image.Image, str]]],
) -> str:
    times = metrics["test"]["measured"] if metrics["test"] else 0
    measured = (
        "The test split has not been measured."
        if not times
        else f"The test split has been measured {times} time{'s' * (times > 1)}."
    )
    judged = parts[-1] if parts[-1].key == TEST else parts[0]
    calibration = metrics["calibration"]
    name, backbone = html.escape(run.name), html.escape(config.backbone)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: report of a pneumonia classifier</title><style>{_STYLE}</style></head><body>
<header><h1>{name}</h1>
<p>NORMAL or PNEUMONIA on chest X-rays: {backbone}, {html.escape(config.head)} head,
{config.size} x {config.size} pixels, trained on {html.escape(config.data_name)}, {html.escape(config.trained)}</p>
<p class="note"><strong>{NOT_A_DIAGNOSIS}</strong> {measured} Epoch, thresholds and calibration were chosen on
validation patients alone.</p></header>
<main><section><h2>In short</h2>{_headline(parts)}
<p><small>Ranges are 95 % intervals, bootstrapped by patient: films of one patient are not independent.</small></p>
</section>
<section><h2>All measures</h2>
<p>"Perturbed" are the validation films disturbed as another site might have taken them: rotation, crop, exposure,
contrast, blur, noise, JPEG. Beside each value stands its 95 % interval by patient, and after W the one by Wilson,
which takes films for independent and is what others print.</p>
{_measures(metrics, parts)}
<p>Probability = sigmoid({calibration["scale"]:.3f} x logit {calibration["offset"]:+.3f}), fitted where
{_percent(calibration["prevalence"])} of the films show pneumonia.</p></section>
<section><h2>What a verdict is worth</h2>
<p>PPV is how often a PNEUMONIA is right, NPV how often a NORMAL is. Both depend on how common pneumonia is
among those who are X-rayed; where it is rare, most alarms are false. To move the probabilities to your own share of
pneumonia, use <code>pneumo-infer --prevalence</code>.</p>{_predictive(judged)}</section>
{"".join(diagrams)}
<section><h2>The most confident mistakes</h2>
<p>Validation films that were judged wrongly at the balanced operating point, farthest from the threshold first.
The percentage is the told probability of pneumonia. The colours show where the model found evidence for pneumonia
({_legend()}); the white line encloses what reaches half of the strongest.
Labels can be wrong too: look at the films.</p>{mistakes.section()}</section>
<section><h2>What training films are put through</h2>
<p>Three training films, each as it is, as training sees it in six epochs, and under the fixed perturbation that makes
the second validation.</p>{_copies(copies)}</section>
<section><h2>The data</h2>
<p>{html.escape(config.data_name)}: what became of each film stands in <code>split.csv</code>. No patient stands both in
training and in validation, and no film stands twice on different sides.</p>{_make_up(films)}</section>
<section><h2>Settings</h2>{_settings(config)}</section></main>
<footer>{NOT_A_DIAGNOSIS} Made by pneumo
{html.escape(config.versions.get("pneumo", ""))}; this page loads nothing from anywhere.</footer>
</body></html>
"""
