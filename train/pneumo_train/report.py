"""report.html of a run: one file, no network, for a doctor and an engineer; its figures also as PNG.

The figures of `FIGURES` show numbers alone and may go anywhere; `mistakes.png`, `overlays.png` and `augmentation.png`
show films.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from pneumo_edge.atomic import write_text
from pneumo_edge.bundle import LABELS
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.overlay import FULL_EVIDENCE, colour_heatmap
from pneumo_edge.report_page import page, percent, table
from pneumo_train.figures import (
    MEAN,
    NAMES,
    PERTURBED,
    Figure,
    Part,
    confusions,
    curves,
    draw_panels,
    reliability,
    roc_pr,
    scores,
    side_by_side,
    sites,
)
from pneumo_train.pictures import Gallery, Kind, augmented, encoded, img, kinds_section, kinds_sheet, sheet, write
from pneumo_train.pointing import ONE_PLACE, SIZES
from pneumo_train.run import Config, Run, RunFilms, read_rows
from pneumo_train.split import LEFT_ASIDE, LEFT_OUT, TEST, TRAIN, UNREADABLE, VALIDATION

FIGURES = ("sites", "confusion", "roc_pr", "scores", "reliability", "curves")
"""Those without a film, each NAME.png."""


def write_report(run: Run) -> None:
    """Draws the figures of a finished run and writes `report.html`.

    Raises:
        RunError: The run is not finished, or its films are gone.
    """
    from pneumo_train.inference import outputs_of

    folder, metrics = run.folder, run.metrics
    history = read_rows(folder / "history.csv")
    parts = [_part(key, run.predictions, metrics[key]) for key in NAMES if metrics[key]]
    figures = [sites(parts), confusions(parts), roc_pr(parts), scores(parts), reliability(parts), curves(history)]
    diagrams = []
    for figure in figures:
        drawn = draw_panels(figure.panels)
        write(folder / f"{figure.name}.png", encoded(side_by_side(drawn)))
        diagrams.append(_section(figure, drawn))
    validation = run.films.part(VALIDATION)
    maps = outputs_of(run.explained_model, validation.pixels)["heatmap"]
    threshold = metrics["operating_points"]["balanced"]["threshold"]
    region = (metrics[VALIDATION].get("pointing") or {}).get("region_threshold")
    gallery = Gallery(validation, parts[0], maps, threshold, region)
    shown = {"mistakes": gallery.mistakes(), "overlays": gallery.overlays()}
    for name, kinds in shown.items():
        if any(kind.pairs for kind in kinds):
            write(folder / f"{name}.png", encoded(kinds_sheet(kinds)))
        else:
            (folder / f"{name}.png").unlink(missing_ok=True)
    copies = augmented(run.films.part(TRAIN), run.config.seed)
    cells = [(picture, name) for row in copies for picture, name in row]
    write(folder / "augmentation.png", encoded(sheet(cells, columns=len(copies[0]), side=130)))
    text = _page(run, parts, diagrams, shown["mistakes"], shown["overlays"], copies)
    write_text(folder / "report.html", text)


def _part(key: str, predictions: list[dict[str, str]], measured: dict[str, Any]) -> Part:
    rows = [r for r in predictions if r["split"] == key]
    labels = np.array([LABELS.index(r["label"]) for r in rows])
    return Part(key, labels, np.array([float(r["probability"]) for r in rows]), measured)


def _decimal(value: float) -> str:
    return f"{value:.3f}"


def _cell(value: dict[str, float], shown: Callable[[float], str]) -> str:
    """Returns a value above its interval, and above Wilson's interval where there is one."""
    text = f"{shown(value['value'])} {_small_interval(value['low'], value['high'], shown)}"
    if "wilson_low" in value:
        text += f" {_small_interval(value['wilson_low'], value['wilson_high'], shown, 'W ')}"
    return text


def _small_interval(low: float, high: float, shown: Callable[[float], str], before: str = "") -> str:
    # Without its unit, which the value has, and with a dash: three such columns must go on a phone.
    bare = [shown(limit).removesuffix("%").rstrip() for limit in (low, high)]
    return f"<small>{before}{bare[0]}\N{EN DASH}{bare[1]}</small>"


def _interval(low: float, high: float, shown: Callable[[float], str]) -> str:
    return f"{shown(low).removesuffix('%').rstrip()} to {shown(high)}"


def _headline(parts: list[Part]) -> str:
    judged = parts[-1] if parts[-1].key == TEST else parts[0]
    point = judged.fair["operating_points"]["balanced"]
    found, spared = point["sensitivity"], point["specificity"]
    cards = []
    for title, key, shown in (
        ("Accuracy", "accuracy", percent),
        ("Sensitivity", "sensitivity", percent),
        ("Specificity", "specificity", percent),
        ("AUC", "auc", _decimal),
    ):
        values = {p.key: p.fair.get(key) or p.fair["operating_points"]["balanced"][key] for p in parts}
        value = values[judged.key]
        others = "".join(
            f"<span>on {p.name}: {shown(values[p.key]['value'])}</span>" for p in parts if p.key != judged.key
        )
        cards.append(
            f'<div class="card"><b>{title}</b><strong>{shown(value["value"])}</strong>'
            f"<span>{_interval(value['low'], value['high'], shown)}</span>{others}</div>"
        )
    sites = len(judged.measure["sites"])
    mean = f", in the mean over {sites} sites, which all count the same" if sites > 1 else ""
    return (
        f'<p class="lead">Of 100 films with pneumonia it finds {100 * found["value"]:.0f} '
        f"({100 * found['low']:.0f} to {100 * found['high']:.0f}); of 100 normal films it calls "
        f"{100 * (1 - spared['value']):.0f} ({100 * (1 - spared['high']):.0f} to {100 * (1 - spared['low']):.0f}) "
        f"pneumonia.</p>"
        f"<p>Measured on {judged.measure['n']} {judged.name} films of {judged.measure['patients']} patients, "
        f"{percent(judged.measure['prevalence'])} with pneumonia, at the balanced operating point{mean}.</p>"
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


def _measures(metrics: dict[str, Any], parts: list[Part]) -> str:
    columns = ["", *(f"{p.name}<small>{p.measure['n']} films, {p.measure['patients']} patients</small>" for p in parts)]
    tables = []
    for name, point in metrics["operating_points"].items():
        at = [p.measure["operating_points"][name] for p in parts]
        rows = [[words, *(_cell(a[key], percent) for a in at)] for key, words in _MEASURES.items()]
        for words, (i, j) in {
            "Pneumonia found (TP)": (1, 1), "Pneumonia missed (FN)": (1, 0),
            "Normal called normal (TN)": (0, 0), "False alarms (FP)": (0, 1),
        }.items():  # fmt: skip
            rows.append([words, *(str(a["confusion"][i][j]) for a in at)])
        caption = f"Operating point <b>{name}</b>, PNEUMONIA from {percent(point['threshold'])}: {_POINT_WORDS[name]}"
        tables.append(table(caption, columns, rows))
    rows = [[words, *(_cell(p.measure[key], _decimal) for p in parts)] for key, words in _SCORES.items()]
    tables.append(table("Without a threshold", columns, rows))
    return "".join(tables)


def _predictive(judged: Part) -> str:
    points = judged.measure["operating_points"]

    def cell(value: dict[str, float], key: str) -> str:
        text = percent(value[key])
        if f"{key}_low" in value:  # runs of earlier versions have none
            text += f" {_small_interval(value[f'{key}_low'], value[f'{key}_high'], percent)}"
        return text

    rows = []
    for values in zip(*(point["ppv_npv"] for point in points.values()), strict=True):
        cells = [cell(value, key) for value in values for key in ("ppv", "npv")]
        rows.append([percent(values[0]["prevalence"], 0), *cells])
    header = ["Share", *(f"{key}<small>{name}</small>" for name in points for key in ("PPV", "NPV"))]
    return table(f"Predictive values by the share of films with pneumonia, from {judged.name}", header, rows)


def _films_table(films: RunFilms, remarks: Sequence[str]) -> str:
    rows = []
    for part in [p for p in (TRAIN, VALIDATION, TEST, LEFT_OUT, *LEFT_ASIDE) if p in films.split]:
        chosen = [films.files[i] for i in films.positions(part)]
        ill = sum(f.label for f in chosen)
        share = f"<small>{percent(ill / len(chosen))}</small>"
        patients = len({f.patient for f in chosen})
        rows.append([part, str(len(chosen) - ill), f"{ill} {share}", str(len(chosen)), str(patients)])
    skipped = [films.files[i].path for i in films.positions(UNREADABLE)]
    text = table("Films by use", ["", *LABELS, "films", "patients"], rows)
    if skipped:
        named = ", ".join(html.escape(path) for path in skipped[:20]) + (" and more" if len(skipped) > 20 else "")
        text += f'<p class="long">Skipped, because they could not be read ({len(skipped)}): {named}.</p>'
    if remarks:
        said = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
        text += f'<p>Remarks before training:</p><ul class="long">{said}</ul>'
    return text


def _settings(config: Config) -> str:
    rows = []
    for key, value in vars(config).items():
        # The folders of the films are private.
        if key in {"data", "format_version"}:
            continue
        if isinstance(value, dict):
            shown = ", ".join(f"{name} {number}" for name, number in value.items())
        elif isinstance(value, list | tuple):
            shown = ", ".join(map(str, value)) or "none"
        else:
            shown = "none" if value is None else str(value)
        rows.append([key.replace("_", " "), f'<span class="long">{html.escape(shown)}</span>'])
    return table("Settings in config.json", ["setting", "value"], rows)


def _section(figure: Figure, drawn: Sequence[Image.Image]) -> str:
    panels = "".join(img(encoded(d), panel.alt) for panel, d in zip(figure.panels, drawn, strict=True))
    return (
        f'<section class="figure"><h2>{figure.title}</h2><p>{figure.caption}</p>'
        f'<div class="panels">{panels}</div></section>'
    )


def _legend() -> str:
    """The colours of a heatmap over grey, from no evidence to full."""
    strip = colour_heatmap(Image.new("L", (240, 14), 110), np.linspace(0, FULL_EVIDENCE, 24, dtype=np.float32)[None])
    return f'<span class="legend">none {img(encoded(strip), "colours from dark violet to yellow")} strong</span>'


def _copies(rows: list[list[tuple[Image.Image, str]]]) -> str:
    cells = []
    for number, row in enumerate(rows, start=1):
        for picture, name in row:
            small = picture.resize((min(160, picture.width),) * 2, Image.Resampling.BICUBIC)
            cells.append(
                f"<figure>{img(encoded(small), f'film {number}, {name}')}<figcaption>{name}</figcaption></figure>"
            )
    return f'<div class="sheet">{"".join(cells)}</div>'


def _sites(metrics: dict[str, Any], parts: list[Part]) -> str:
    """Returns the tables by site, and of the site that nothing was learned from."""
    tables = [_site_table(f"By site: {part.name} films", part.measure) for part in parts]
    if metrics["left_out"]:
        tables.append(_site_table("A site that nothing was learned from: all its films", metrics["left_out"]))
    return "".join(tables) + "".join(_group_tables(part) for part in parts if part.key != PERTURBED)


def _site_table(caption: str, measured: dict[str, Any]) -> str:
    rows = []
    mean = {MEAN: measured["mean"]} if len(measured["sites"]) > 1 else {}
    for site, m in (measured["sites"] | mean).items():
        point = m["operating_points"]["balanced"]
        films = f"<small>{m['n']} films, {percent(m['prevalence'], 0)} with pneumonia</small>" if "n" in m else ""
        rows.append(
            [
                html.escape(site) + films,
                _cell(m["auc"], _decimal),
                *(_cell(_without_wilson(point[key]), percent) for key in ("accuracy", "sensitivity", "specificity")),
                _cell(m["ece"], _decimal),
                _own_fit(m.get("own")),
            ]
        )
    for site, m in measured.get("one_class", {}).items():
        right = _cell(m["right"]["balanced"], percent)
        films = f"<small>{m['n']} films, all {m['label']}</small>"
        shares = ["", right, ""] if m["label"] == LABELS[1] else ["", "", right]
        rows.append([html.escape(site) + films, "", *shares, "", ""])
    header = ["site", "AUC", "Accuracy", "Sensitivity", "Specificity", "ECE", "With a fit of its own"]
    return table(caption, header, rows)


def _own_fit(own: dict[str, Any] | None) -> str:
    if own is None:
        return ""
    point = own["operating_points"]["balanced"]
    found, spared = (percent(point[key]["value"]) for key in ("sensitivity", "specificity"))
    return f"{found} / {spared}<small>ECE {own['ece']['value']:.3f}</small>"


def _group_tables(part: Part) -> str:
    tables = []
    for kind, what in (("age", "Age in years"), ("view", "View")):
        rows = []
        for site, m in part.measure["sites"].items():
            for group, g in m.get("groups", {}).get(kind, {}).items():
                point = g["operating_points"]["balanced"]
                shares = (_cell(point[key], percent) if key in point else "" for key in ("sensitivity", "specificity"))
                area = _cell(g["auc"], _decimal) if "auc" in g else ""
                rows.append(
                    [f"{html.escape(site)}, {html.escape(group)}", str(g["n"]), str(g["positives"]), area, *shares]
                )
        if rows:
            header = ["", "films", "with pneumonia", "AUC", "Sensitivity", "Specificity"]
            tables.append(table(f"{what}: {part.name} films, as far as it is known", header, rows))
    return "".join(tables)


def _without_wilson(value: dict[str, float]) -> dict[str, float]:
    """Returns a value with its bootstrapped interval alone."""
    return {key: value[key] for key in ("value", "low", "high")}


def _weighing(metrics: dict[str, Any]) -> str:
    """Returns how well the site tells the class, and how well the features tell the site."""
    probe = metrics[VALIDATION].get("site_probe")
    if not probe:
        return ""
    rows = [
        [html.escape(site), *(percent(weighed[key]) for key in ("weight", "prevalence", "weighted_prevalence"))]
        for site, weighed in probe["weighing"].items()
    ]
    header = ["site", "share of all weight", "with pneumonia, by number", "with pneumonia, by weight"]
    area = probe["class_from_site"]
    text = (
        "<p>A judge who knows only the site of a film, and how common pneumonia is there, tells the classes of "
        f"validation films apart with an AUC of {area['films_as_they_are']:.3f}; with films weighed as in training, of "
        f"{area['films_weighed']:.3f}. "
    )
    if probe["site_from_features"] is not None:
        text += (
            "The network does see where a film was taken: from its features, a linear classifier finds the site of "
            f"{percent(probe['site_from_features'])} of the films that it has not seen, against "
            f"{percent(probe['guess'])} by guessing."
        )
    return (
        "<section><h2>Does the site tell the class?</h2><p>Films are weighed so that in each site both classes weigh "
        "the same; a site weighs as the square root of the number of its films.</p>"
        f"{table('Training films of each site', header, rows)}{text}</p></section>"
    )


_POINTING = {
    "points": "Points into a box",
    "pixel_auc": "Pixel AUC",
    "iou": "Overlap (IoU)",
    "touched": "Boxes found (IoBB)",
    "evidence_outside": "Evidence outside",
}


def _pointing(metrics: dict[str, Any], parts: list[Part], overlays: Sequence[Kind]) -> str:
    tables = []
    judged = [(part.name, part.measure) for part in parts]
    if metrics["left_out"]:
        judged.append(("left-out", metrics["left_out"]))
    for name, measured in judged:
        pointing = measured.get("pointing")
        if not pointing:
            continue
        rows = []
        for site, sizes in pointing["sites"].items():
            for size, m in sizes.items():
                which = "" if size == "all" else f"<small>{size}: {_size_words(size)}</small>"
                films = f"<small>{m['films']} films, boxes cover {percent(m['boxes_cover']['value'], 0)}</small>"
                rows.append([html.escape(site) + which + films, *(_beside_mean_map(m, key) for key in _POINTING)])
        if rows:
            tables.append(table(f"Heatmaps and boxes: {name} films", ["", *_POINTING.values()], rows))
        rows = [
            [
                html.escape(site),
                str(m["films"]),
                _cell(m["with_region"], percent),
                f"{m['regions_per_film']:.2f}",
                _cell(m["with_region_if_all_were_shown"], percent),
            ]
            for site, m in pointing["normals"].items()
        ]
        if rows:
            header = ["site", "films", "with a region", "regions a film", "if each film showed its own"]
            tables.append(table(f"Films labelled NORMAL: {name} films", header, rows))
    if not tables and not overlays:
        return ""
    threshold = (metrics[VALIDATION].get("pointing") or {}).get("region_threshold")
    region = (
        ""
        if threshold is None
        else f"A region is what reaches a local probability of {percent(threshold, 0)}, chosen on validation films; it "
        "is shown where a film is called PNEUMONIA. "
    )
    examples = ""
    if overlays:
        colours = "amber is the outline of the region" if threshold is not None else "colours are evidence"
        examples = f"<p>Validation films, good and bad: {colours}, blue are the boxes.</p>"
        examples += kinds_section(overlays, "what the model saw and the boxes of radiologists")
    share = (metrics[VALIDATION].get("pointing") or {}).get("one_place") or 0.0
    stuck = (
        f"<p><strong>In {percent(share, 0)} of the validation films with pneumonia the strongest place of the heatmap "
        "is the same one: it does not point at the disease. Train with another seed.</strong></p>"
        if share > ONE_PLACE
        else ""
    )
    return (
        f"<section><h2>Does it point at the disease?</h2>{stuck}<p>Heatmaps against boxes that radiologists drew "
        f"around opacities. {region}Small figures after M are those of one fixed map, the mean of all: opacities "
        "like the lower lungs, so that a map which never looks at the film does quite well. Boxes found: a region "
        "lies in the box with a quarter of its own bounding box or more. Evidence outside is the share of the positive "
        f"part of the map outside all boxes.</p>{''.join(tables)}{examples}</section>"
    )


def _size_words(size: str) -> str:
    low, high = SIZES[size]
    return f"boxes cover {100 * low:.0f} to {100 * min(high, 1):.0f}\N{NO-BREAK SPACE}% of the film"


def _beside_mean_map(m: dict[str, Any], key: str) -> str:
    if key not in m:
        return ""
    shown = _decimal if key in {"pixel_auc", "iou"} else percent
    other = m.get(f"mean_map_{key}")
    return _cell(m[key], shown) + (f" <small>M {shown(other['value'])}</small>" if other else "")


def _page(
    run: Run,
    parts: list[Part],
    diagrams: list[str],
    mistakes: Sequence[Kind],
    overlays: Sequence[Kind],
    copies: list[list[tuple[Image.Image, str]]],
) -> str:
    config, metrics = run.config, run.metrics
    times = metrics["test"]["measured"] if metrics["test"] else 0
    measured = (
        "The test split has not been measured."
        if not times
        else f"The test split has been measured {times} time{'s' * (times > 1)}."
    )
    judged = parts[-1] if parts[-1].key == TEST else parts[0]
    calibration = metrics["calibration"]
    name, backbone = html.escape(run.folder.name), html.escape(config.backbone)
    marked = (
        f"The colours show where the model found evidence for pneumonia ({_legend()}); the white line encloses what "
        "reaches half of the strongest."
        if (metrics[VALIDATION].get("pointing") or {}).get("region_threshold") is None
        else "The amber line is the outline of the region that stands out, where there is one."
    )
    header = f"""<h1>{name}</h1>
<p>NORMAL or PNEUMONIA on chest X-rays: {backbone}, {html.escape(config.head)} head,
{config.size} x {config.size} pixels, trained on {html.escape(config.data_name)}, {html.escape(config.trained)}</p>
<p class="note"><strong>{NOT_A_DIAGNOSIS}</strong> {measured} Epoch, thresholds and calibration were chosen on
validation patients alone.</p>"""
    main = f"""<section><h2>In short</h2>{_headline(parts)}
<p><small>Ranges are 95 % intervals, bootstrapped by patient: films of one patient are not independent.</small></p>
</section>
<section><h2>By site</h2>
<p>One calibration and one threshold for all sites, at the balanced operating point. The last column shows what a
calibration and a threshold of the site's own would give: sensitivity / specificity, and the calibration error. They are
cross-fitted by patient on the same films.</p>
{_sites(metrics, parts)}</section>
{_weighing(metrics)}
{_pointing(metrics, parts, overlays)}
<section><h2>All measures</h2>
<p>All films together, whatever their site. "Perturbed" means the validation films changed as if another site had taken
them: rotation, crop, exposure, contrast, blur, noise, JPEG. Below each value is its 95 % interval by patient, and after
W the interval by Wilson, which treats films as independent and is what others print.</p>
{_measures(metrics, parts)}
<p>Probability = sigmoid({calibration["scale"]:.3f} x logit {calibration["offset"]:+.3f}), fitted where
{percent(calibration["prevalence"])} of the films show pneumonia.</p></section>
<section><h2>What a verdict is worth</h2>
<p>PPV is how often a PNEUMONIA is right, NPV how often a NORMAL is. Both depend on how common pneumonia is
among those who are X-rayed; where it is rare, most alarms are false. To move the probabilities to your own share of
pneumonia, use <code>pneumo-infer --prevalence</code>.</p>{_predictive(judged)}</section>
{"".join(diagrams)}
<section><h2>The most confident mistakes</h2>
<p>Validation films with a wrong verdict at the balanced operating point, farthest from the threshold first.
The percentage is the predicted probability of pneumonia. {marked}
Labels can be wrong too: look at the films.</p>{kinds_section(mistakes, "what the model saw")}</section>
<section><h2>Augmentation: training films as the network sees them</h2>
<p>Three training films: each as it is, as training shows it in six epochs, and under the fixed perturbation of the
perturbed validation films.</p>{_copies(copies)}</section>
<section><h2>The data</h2>
<p>{html.escape(config.data_name)}: <code>split.csv</code> says how each film is used. No patient is in both
training and validation, and no copy of a film is on another side than the film.</p>
{_films_table(run.films, run.remarks)}</section>
<section><h2>Settings</h2>{_settings(config)}</section>"""
    title = f"{name}: report of a pneumonia classifier"
    return page(title, header, main, html.escape(config.versions.get("pneumo", "")))
