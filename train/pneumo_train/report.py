"""report.html of a run: one file, no network, for a doctor and an engineer; its figures also as PNG."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_edge.atomic import replacing_file, write_text
from pneumo_edge.bundle import LABELS
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.overlay import colour_heatmap
from pneumo_train.augment import augment
from pneumo_train.perturb import perturb
from pneumo_train.run import Config, Films, load_films, model_path, read_config, read_metrics, read_rows
from pneumo_train.split import TEST, TRAIN, VALIDATION

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORMAL_COLOUR, PNEUMONIA_COLOUR, NEUTRAL = "#2b7a78", "#c8553d", "#5b6770"
_MISTAKES = 12
_TITLES = {VALIDATION: "validation", f"{VALIDATION}_perturbed": "validation, perturbed", TEST: "test"}


def write_report(run: Path) -> None:
    """Draws the figures of a finished run and writes `report.html`.

    Raises:
        RunError: The run is not finished, or its films are gone.
    """
    config, metrics = read_config(run), read_metrics(run)
    history, predictions = read_rows(run / "history.csv"), read_rows(run / "predictions.csv")
    films = load_films(run, config)
    validation = films.part(VALIDATION)
    point = metrics["operating_points"]["balanced"]["threshold"]
    scores = {part: _scores(predictions, part) for part in _TITLES if any(r["split"] == part for r in predictions)}
    judged = TEST if TEST in scores else VALIDATION
    figures: dict[str, tuple[str, Figure | Image.Image | None]] = {
        "curves": ("Loss and accuracy", _curves(history)),
        "confusion": ("Confusion matrix at the balanced operating point", _confusions(metrics, scores)),
        "roc_pr": ("ROC and precision-recall; the marks are the operating points", _roc_pr(scores, metrics)),
        "reliability": ("Reliability: what the probability says, and what came true", _reliability(scores)),
        "scores": (f"Probabilities by class, {_TITLES[judged]}", _histogram(*scores[judged], point)),
        "augmentation": (
            "One film as training and the perturbed validation see it",
            _augmentation_sheet(films.part(TRAIN), config.seed),
        ),
        "mistakes": (
            "The most confident mistakes on validation, with heatmaps",
            _mistakes(run, validation, *scores[VALIDATION], point),
        ),
    }
    sections = []
    for name, (title, figure) in figures.items():
        if figure is None:
            continue
        png = _png(figure)
        with replacing_file(run / f"{name}.png") as temporary:
            temporary.write_bytes(png)
        encoded = base64.b64encode(png).decode()
        sections.append(
            f"<figure><figcaption>{html.escape(title)}</figcaption>"
            f'<img alt="{html.escape(title)}" src="data:image/png;base64,{encoded}"></figure>'
        )
    write_text(run / "report.html", _page(run, config, metrics, history, sections))


def _scores(predictions: list[dict[str, str]], part: str) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    rows = [r for r in predictions if r["split"] == part]
    return np.array([LABELS.index(r["label"]) for r in rows]), np.array([float(r["probability"]) for r in rows])


def _new(columns: int, width: float = 4.6, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    # Not pyplot: its global state belongs to the user's own figures.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    axes = list(figure.subplots(1, columns, squeeze=False)[0])
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    return figure, axes


def _png(figure: Figure | Image.Image) -> bytes:
    buffer = io.BytesIO()
    if isinstance(figure, Image.Image):
        figure.save(buffer, "PNG")
    else:
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _curves(history: list[dict[str, str]]) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _new(3)
    epochs = [int(r["epoch"]) for r in history]
    series = (
        ("loss", "loss", (("loss", "training"), ("val_loss", "validation"), ("perturbed_loss", "perturbed"))),
        (
            "accuracy",
            "accuracy at logit 0",
            (("accuracy", "training"), ("val_accuracy", "validation"), ("perturbed_accuracy", "perturbed")),
        ),
        ("AUC", "AUC", (("val_auc", "validation"), ("perturbed_auc", "perturbed"))),
    )
    colours = {"training": NEUTRAL, "validation": NORMAL_COLOUR, "perturbed": PNEUMONIA_COLOUR}
    for axis, (title, label, lines) in zip(axes, series, strict=True):
        for column, name in lines:
            values = [float(r[column]) for r in history]
            axis.plot(epochs, values, marker="o", markersize=3, color=colours[name], label=name)
        axis.set(title=title, xlabel="epoch", ylabel=label)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.legend(frameon=False)
    return figure


def _confusions(metrics: dict[str, Any], scores: dict[str, Any]) -> Figure:
    figure, axes = _new(len(scores), 3.4, 3.3)
    for axis, part in zip(axes, scores, strict=True):
        table = np.array(metrics[part]["operating_points"]["balanced"]["confusion"])
        shares = table / table.sum(axis=1, keepdims=True)
        axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (i, j), count in np.ndenumerate(table):
            colour = "white" if shares[i, j] > 0.5 else "black"
            axis.text(j, i, f"{count}\n{shares[i, j]:.1%}", ha="center", va="center", color=colour)
        axis.set(title=_TITLES[part], xlabel="model says", ylabel="label", xticks=[0, 1], yticks=[0, 1])
        axis.set_xticklabels(LABELS)
        axis.set_yticklabels(LABELS, rotation=90, va="center")
        axis.grid(visible=False)
    return figure


def _roc_pr(scores: dict[str, Any], metrics: dict[str, Any]) -> Figure:
    from sklearn.metrics import precision_recall_curve, roc_curve

    figure, (roc, pr) = _new(2, 5.2, 4.4)
    colours = dict(zip(_TITLES, (NORMAL_COLOUR, PNEUMONIA_COLOUR, "#3d5a99"), strict=True))
    for part, (labels, p) in scores.items():
        x, y, _ = roc_curve(labels, p)
        roc.plot(x, y, color=colours[part], label=f"{_TITLES[part]}, AUC {metrics[part]['auc']['value']:.4f}")
        precision, recall, _ = precision_recall_curve(labels, p)
        area = metrics[part]["average_precision"]["value"]
        pr.plot(recall, precision, color=colours[part], label=f"{_TITLES[part]}, AP {area:.4f}")
        for marker, point in zip("os", metrics[part]["operating_points"].values(), strict=False):
            sensitivity, specificity = point["sensitivity"]["value"], point["specificity"]["value"]
            roc.plot(1 - specificity, sensitivity, marker, color=colours[part])
            pr.plot(sensitivity, point["precision"]["value"], marker, color=colours[part])
    roc.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC (circle: balanced, square: screening)")
    roc.set(xlim=(-0.01, 0.5), ylim=(0.5, 1.01))
    pr.set(xlabel="recall", ylabel="precision", title="precision-recall", xlim=(0.5, 1.01), ylim=(0.5, 1.01))
    roc.legend(frameon=False, loc="lower right")
    pr.legend(frameon=False, loc="lower left")
    return figure


def _reliability(scores: dict[str, Any]) -> Figure:
    figure, axes = _new(len(scores), 3.8, 3.6)
    for axis, (part, (labels, p)) in zip(axes, scores.items(), strict=True):
        bins = np.minimum((p * 10).astype(int), 9)
        axis.plot([0, 1], [0, 1], color=NEUTRAL, linestyle=":")
        for b in np.unique(bins):
            inside = bins == b
            axis.scatter(
                p[inside].mean(), labels[inside].mean(), s=12 + 3 * inside.sum() ** 0.7, color=PNEUMONIA_COLOUR
            )
        axis.set(title=_TITLES[part], xlabel="probability of pneumonia", ylabel="share with pneumonia")
        axis.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    return figure


def _histogram(labels: npt.NDArray[np.int64], p: npt.NDArray[np.float64], threshold: float) -> Figure:
    figure, (axis,) = _new(1, 7, 3.2)
    for label, colour in enumerate((NORMAL_COLOUR, PNEUMONIA_COLOUR)):
        axis.hist(p[labels == label], bins=40, range=(0, 1), alpha=0.6, color=colour, label=LABELS[label])
    axis.axvline(threshold, color="black", linestyle="--", label="balanced threshold")
    axis.set(xlabel="probability of pneumonia", ylabel="films", yscale="symlog")
    axis.legend(frameon=False)
    return figure


def _sheet(pictures: Iterable[Image.Image], columns: int, side: int = 150) -> Image.Image:
    shown = list(pictures)
    rows = -(-len(shown) // columns)
    sheet = Image.new("RGB", (columns * (side + 6) + 6, rows * (side + 6) + 6), "white")
    for i, picture in enumerate(shown):
        place = (6 + (i % columns) * (side + 6), 6 + (i // columns) * (side + 6))
        sheet.paste(picture.convert("RGB").resize((side, side)), place)
    return sheet


def _augmentation_sheet(train: Films, seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    pictures = []
    for i in rng.choice(len(train.files), min(3, len(train.files)), replace=False):
        film = train.pixels[i]
        pictures += [Image.fromarray(film)] + [Image.fromarray(augment(film, rng)) for _ in range(5)]
        pictures += [Image.fromarray(perturb(film, train.paths[i]))]
    return _sheet(pictures, columns=7, side=130)


def _mistakes(
    run: Path,
    films: Films,
    labels: npt.NDArray[np.int64],
    p: npt.NDArray[np.float64],
    threshold: float,
) -> Figure | None:
    import keras

    from pneumo_train.explain import explained

    wrong = np.flatnonzero((p >= threshold) != (labels == 1))
    worst = wrong[np.argsort(-np.abs(p[wrong] - threshold))][:_MISTAKES]
    if not len(worst):
        return None
    model = explained(keras.saving.load_model(model_path(run)))
    maps = np.asarray(model.predict_on_batch(films.pixels[worst][..., np.newaxis].astype(np.float32))["heatmap"])
    columns = 6
    rows = -(-len(worst) // columns)
    figure, _ = _new(1, 2.1 * columns, 2.6 * rows)
    figure.clear()
    for place, (i, heatmap) in enumerate(zip(worst, maps, strict=True), start=1):
        axis = figure.add_subplot(rows, columns, place)
        axis.imshow(colour_heatmap(Image.fromarray(films.pixels[i]).resize((320, 320)), heatmap))
        said = LABELS[int(p[i] >= threshold)]
        axis.set_title(f"says {said} ({p[i]:.0%})\nlabel {LABELS[labels[i]]}", fontsize=8)
        axis.set_axis_off()
    return figure


def _percent(value: dict[str, float]) -> str:
    return f"{value['value']:.1%} <small>({value['low']:.1%} to {value['high']:.1%})</small>"


def _share(value: dict[str, float]) -> str:
    return f"{value['value']:.4f} <small>({value['low']:.4f} to {value['high']:.4f})</small>"


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{h}</th>" for h in header)
    body = "".join("<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _page(
    run: Path, config: Config, metrics: dict[str, Any], history: list[dict[str, str]], sections: list[str]
) -> str:
    parts = [part for part in _TITLES if metrics.get(part)]
    rows = []
    for part in parts:
        m = metrics[part]
        for name, point in m["operating_points"].items():
            rows.append(
                [
                    _TITLES[part],
                    name,
                    f"{m['n']} <small>({m['patients']} patients)</small>",
                    *(_percent(point[k]) for k in ("accuracy", "sensitivity", "specificity", "precision", "f1")),
                ]
            )
    scores = [
        [_TITLES[part], *(_share(metrics[part][k]) for k in ("auc", "average_precision", "brier", "ece"))]
        for part in parts
    ]
    judged = parts[-1] if TEST in parts else VALIDATION
    values = metrics[judged]["operating_points"]["balanced"]["ppv_npv"]
    predictive = [[f"{v['prevalence']:.0%}", f"{v['ppv']:.1%}", f"{v['npv']:.1%}"] for v in values]
    settings = [
        [
            html.escape(str(k)),
            html.escape(", ".join(f"{a} {b}" for a, b in v.items()) if isinstance(v, dict) else str(v)),
        ]
        for k, v in vars(config).items()
        if k not in {"data", "format_version"}
    ]
    best = max(history, key=lambda r: float(r["perturbed_auc"]))
    times = metrics["test"]["measured"] if metrics.get("test") else 0
    measured = (
        "The test split has not been measured."
        if not times
        else f"The test split has been measured {times} time{'s' * (times > 1)}."
    )
    films = [[html.escape(k), str(v)] for k, v in sorted(metrics["films"].items())]
    calibration = metrics["calibration"]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>pneumo: {html.escape(run.name)}</title><style>
:root {{ color-scheme: light; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: #1d2529; max-width: 64rem; margin: 0 auto; padding: 1rem; }}
h1 {{ margin-bottom: 0; }} h2 {{ margin-top: 2.2rem; border-bottom: 1px solid #ccd3d6; padding-bottom: .2rem; }}
.note {{ background: #fdf3e3; border-left: 4px solid #c8553d; padding: .6rem 1rem; }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: .3rem .6rem; border-bottom: 1px solid #e3e8ea; vertical-align: top; }}
small {{ color: #5b6770; white-space: nowrap; }} figure {{ margin: 1.2rem 0; break-inside: avoid; }}
figcaption {{ font-weight: 600; }} img {{ max-width: 100%; height: auto; }}
@media print {{ body {{ max-width: none; font-size: 11px; }} }}
</style></head><body>
<h1>{html.escape(run.name)}</h1>
<p>{html.escape(config.backbone)}, {config.head} head, {config.size} x {config.size} pixels,
trained on {html.escape(config.data_name)}, {config.trained}</p>
<p class="note"><strong>{NOT_A_DIAGNOSIS}</strong> {measured} Epoch, thresholds and calibration were chosen on
validation patients alone. Intervals are 95 %, bootstrapped by patient.</p>
<h2>How good it is</h2>
{_table(("films", "operating point", "n", "accuracy", "sensitivity", "specificity", "precision", "F1"), rows)}
{_table(("films", "AUC", "average precision", "Brier score", "calibration error"), scores)}
<p>"Perturbed" are the validation films disturbed as another site might have taken them (rotation, crop, exposure,
contrast, blur, noise, JPEG). Probability = sigmoid({calibration["scale"]:.3f} x logit
{calibration["offset"]:+.3f}), fitted at a prevalence of {calibration["prevalence"]:.1%}.
The best epoch was {best["epoch"]} of {len(history)}.</p>
<h2>What a verdict is worth where pneumonia is rarer</h2>
{_table(("share of films with pneumonia", "PPV: a PNEUMONIA is right", "NPV: a NORMAL is right"), predictive)}
<p><small>From sensitivity and specificity at the balanced operating point on {_TITLES[judged]}.</small></p>
<h2>Figures</h2>
{"".join(sections)}
<h2>The data</h2>
{_table(("split / label", "films"), films)}
<h2>Settings</h2>
{_table(("setting", "value"), settings)}
</body></html>
"""
