"""The diagrams of a run's report: numbers alone, no film. Each is drawn once, for the page and as PNG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.bundle import LABELS
from pneumo_edge.calibrate.measure import ECE_BINS, wilson
from pneumo_edge.report_page import percent
from pneumo_train.split import TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PERTURBED = f"{VALIDATION}_perturbed"
NAMES = {VALIDATION: "validation", PERTURBED: "perturbed", TEST: "test"}
MEAN = "mean over sites"

# Told apart by colour-blind eyes (Okabe and Ito; Tol) and, by line or hatching, in a grey print.
_CLASS_COLOURS = ("#0072b2", "#d55e00")
_LINES = {TRAIN: ("#6b767d", ":"), VALIDATION: ("#332288", "-"), PERTURBED: ("#aa4499", "--"), TEST: ("#117733", "-.")}
_MARKERS = {"balanced": "o", "screening": "s"}
_THRESHOLD_LINES = {"balanced": "--", "screening": ":"}


class Part(NamedTuple):
    """Films that were judged: their scores, and what `metrics.json` says of them."""

    key: str
    labels: npt.NDArray[np.int64]
    p: npt.NDArray[np.float64]
    measure: dict[str, Any]

    @property
    def name(self) -> str:
        return NAMES[self.key]

    @property
    def by_site(self) -> dict[str, dict[str, Any]]:
        """Site -> its measures; where there are several, the mean over them last."""
        sites: dict[str, dict[str, Any]] = self.measure["sites"]
        return sites | ({MEAN: self.measure["mean"]} if len(sites) > 1 else {})

    @property
    def fair(self) -> dict[str, Any]:
        """AUC, ECE and the shares at each operating point, each site with the same say."""
        mean: dict[str, Any] = self.measure["mean"]
        return mean


class Panel(NamedTuple):
    """One diagram; `alt` says in words what it shows."""

    alt: str
    draw: Callable[[Axes], None]


class Figure(NamedTuple):
    """Panels that belong together: side by side in the PNG, below each other on a phone."""

    name: str
    title: str
    caption: str
    panels: list[Panel]


def draw_panels(panels: Sequence[Panel]) -> list[Image.Image]:
    """Draws each panel, all of one size."""
    # Not pyplot: its global state belongs to the user's own figures.
    from matplotlib import figure as matplotlib_figure
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    drawn = []
    for panel in panels:
        figure = matplotlib_figure.Figure(figsize=(3.9, 3.5), layout="constrained", dpi=190)
        canvas = FigureCanvasAgg(figure)
        axis = figure.add_subplot()
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        axis.set_axisbelow(True)
        panel.draw(axis)
        axis.title.set_fontsize(11)
        canvas.draw()  # type: ignore[no-untyped-call] # `savefig` would draw twice
        drawn.append(Image.fromarray(np.array(canvas.buffer_rgba())).convert("RGB"))  # type: ignore[no-untyped-call]
    return drawn


def side_by_side(drawn: Sequence[Image.Image]) -> Image.Image:
    """Joins panels of one size to one picture."""
    width, height = drawn[0].size
    row = Image.new("RGB", (width * len(drawn), height), "white")
    for i, picture in enumerate(drawn):
        row.paste(picture, (i * width, 0))
    return row


def sites(parts: list[Part]) -> Figure:
    """AUC, sensitivity and specificity at each site, with their intervals."""

    def draw(axis: Axes, title: str, key: str) -> None:
        names = list(parts[0].by_site)[::-1]
        for row, part in enumerate(parts):
            colour, _ = _LINES[part.key]
            for place, name in enumerate(names):
                measured = part.by_site.get(name)
                if measured is None:
                    continue
                value = measured.get(key) or measured["operating_points"]["balanced"][key]
                y = place + 0.22 * ((len(parts) - 1) / 2 - row)
                axis.plot([value["low"], value["high"]], [y, y], color=colour, linewidth=1.6)
                label = part.name if place == 0 else None
                marker = "D" if name == MEAN else "o"
                axis.plot(value["value"], y, marker, color=colour, markersize=5.5, linestyle="none", label=label)
        # A name that is longer than its room would squeeze the diagram.
        axis.set_yticks(range(len(names)), [textwrap.fill(name, 12, max_lines=3) for name in names], fontsize=8)
        axis.set(title=title, ylim=(-0.6, len(names) - 0.4))
        axis.legend(fontsize=8.5, framealpha=0.85, edgecolor="none", loc="best")

    series = {"AUC": "auc", "Sensitivity": "sensitivity", "Specificity": "specificity"}
    return Figure(
        "sites",
        "Sites: where it is good",
        "Bars are 95 % intervals by patient. In the mean each site counts the same; calibration and threshold are the "
        "same for all.",
        [
            Panel(
                f"{title} by site: "
                + "; ".join(
                    f"{part.name} {name} {(m.get(key) or m['operating_points']['balanced'][key])['value']:.3f}"
                    for part in parts
                    for name, m in part.by_site.items()
                ),
                partial(draw, title=title, key=key),
            )
            for title, key in series.items()
        ],
    )


def curves(history: list[dict[str, str]]) -> Figure:
    """Loss, accuracy and AUC of every epoch."""
    epochs = [int(r["epoch"]) for r in history]
    best = epochs[int(np.argmax([float(r["perturbed_auc"]) for r in history]))]

    def draw(axis: Axes, title: str, lines: dict[str, str]) -> None:
        from matplotlib.ticker import MaxNLocator

        for key, column in lines.items():
            colour, style = _LINES[key]
            values = [float(r[column]) for r in history]
            name = "training" if key == TRAIN else NAMES[key]
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
    return Figure(
        "curves",
        "Loss and accuracy: how it learned",
        "Each epoch is one pass over the training films. Training films are shown augmented, with label smoothing and "
        "dropout, so their loss is higher, which is no sign of a fault. The grey band marks what was kept, epoch "
        f"{best} of {len(epochs)}: the one with the largest AUC on the perturbed validation films.",
        [
            Panel(
                f"{title} of every epoch, {len(epochs)} in all; epoch {best} was kept",
                partial(draw, title=title, lines=lines),
            )
            for title, lines in series.items()
        ],
    )


def confusions(parts: list[Part]) -> Figure:
    """Films by label and verdict."""

    def draw(axis: Axes, part: Part) -> None:
        table = np.array(part.measure["operating_points"]["balanced"]["confusion"])
        shares = table / table.sum(axis=1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        words = (("right", "false alarm"), ("missed", "right"))
        for (i, j), count in np.ndenumerate(table):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i - 0.09, str(count), ha="center", va="center", color=colour, fontsize=16)
            below = f"{words[i][j]}, {percent(shares[i, j])}"
            axis.text(j, i + 0.16, below, ha="center", va="center", color=colour, fontsize=9.5)
        axis.set(title=part.name.capitalize(), xlabel="the model says", ylabel="the film is labelled")
        axis.set(xticks=[0, 1], yticks=[0, 1], xticklabels=LABELS)
        axis.set_yticklabels(LABELS, rotation=90, va="center")
        axis.grid(visible=False)

    panels = []
    for part in parts:
        (tn, fp), (fn, tp) = part.measure["operating_points"]["balanced"]["confusion"]
        alt = f"{part.name}: {tp} pneumonias found, {fn} missed; {tn} normal films called normal, {fp} false alarms"
        panels.append(Panel(alt, partial(draw, part=part)))
    return Figure(
        "confusion",
        "Confusion matrix: right and wrong",
        "Films by label and verdict at the balanced operating point; percentages are of the films of that label.",
        panels,
    )


def roc_pr(parts: list[Part]) -> Figure:
    """ROC and precision-recall curves: what every threshold would give."""
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
    return Figure(
        "roc_pr",
        "ROC and precision-recall: every threshold",
        "Circles are the balanced operating point, squares the screening one. AUC is the chance that a film with "
        "pneumonia scores above one without. Precision depends on how many films show pneumonia: "
        + "; ".join(f"{percent(part.measure['prevalence'])} in {part.name}" for part in parts)
        + ".",
        [Panel(f"ROC curves; AUC: {areas}", roc), Panel(f"Precision-recall; average precision: {precisions}", pr)],
    )


def reliability(parts: list[Part]) -> Figure:
    """The predicted probability against the share of films with pneumonia."""

    def draw(axis: Axes, part: Part) -> None:
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
        axis.set(xlabel="predicted probability of pneumonia", ylabel="share labelled PNEUMONIA")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))

    return Figure(
        "reliability",
        "Reliability: does 80 % mean 80 %?",
        f"Films are grouped by their predicted probability, in {ECE_BINS} equal steps. On the dotted line the "
        "probability is right; above it pneumonia was more common than predicted, below it rarer. Larger dots stand "
        "for more films; bars are Wilson's 95 % intervals, wide for few films. ECE is the mean distance from the line.",
        [Panel(f"Reliability, {p.name}: ECE {p.measure['ece']['value']:.3f}", partial(draw, part=p)) for p in parts],
    )


def scores(parts: list[Part]) -> Figure:
    """Histograms of the probabilities by label."""

    def draw(axis: Axes, part: Part) -> None:
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

    return Figure(
        "scores",
        "Scores: the probability of each film",
        "Films with pneumonia point up, normal ones down; the scale is logarithmic, so that single films are seen. "
        "What stands right of a threshold is called PNEUMONIA: above the axis to its left are the missed ones, below "
        "the axis to its right the false alarms.",
        [Panel(f"Histogram of the probabilities by label, {p.name}", partial(draw, part=p)) for p in parts],
    )
