"""MODEL_CARD.md of a bundle: its purpose, its limits, the people in its training films, and how good each file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pneumo_edge.bundle import LABELS, Description, Site
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_train.backbones import find_backbone
from pneumo_train.run import Config

_PARTS = {"validation": "validation", "validation_perturbed": "validation, perturbed", "test": "test"}
_GROWN_UP = 18
"""Years."""


def model_card(
    description: Description,
    config: Config,
    metrics: dict[str, Any],
    parity: dict[str, Any],
    elsewhere: Mapping[str, Any] | None = None,
) -> str:
    """Returns the card as Markdown.

    Args:
        description: Description of the bundle.
        config: `config.json` of the run.
        metrics: `metrics.json` of the run.
        parity: `parity.json` of the export.
        elsewhere: `sites.json` of pneumo-bench sites: results of the same recipe at sites left out; None if unknown.
    """
    calibration, provenance = description.calibration, description.provenance
    default = description.default_operating_point
    points = "\n".join(
        f"| {name}{' (default)' if name == default else ''} | {point.threshold:.4f} "
        f"| {_interval(vars(point.sensitivity))} | {_interval(vars(point.specificity))} |"
        for name, point in description.operating_points.items()
    )
    test = metrics.get("test")
    measured = (
        f"The test split has been measured {test['measured']} time(s) with the Keras model."
        if test
        else "The test split has not been measured."
    )
    files = "\n".join(
        f"| {name} | {record['precision']} | {record['bytes'] / 1e6:.1f} MB | {title} "
        f"| {_interval(record['intervals'][part]['auc'], 4)} | {_interval(record['intervals'][part]['accuracy'])} "
        f"| {_interval(record['intervals'][part]['sensitivity'])} "
        f"| {_interval(record['intervals'][part]['specificity'])} "
        f"| {record[part]['flips']['lost']} / {record[part]['flips']['won']} |"
        for name, record in parity["files"].items()
        if name in description.files
        for part, title in (("clean", "as they are"), ("perturbed", "perturbed"))
    )
    judged = metrics["test"] if test else metrics["validation"]
    prevalence = "\n".join(
        f"| {v['prevalence']:.0%} | {v['ppv']:.1%} | {v['npv']:.1%} |"
        for v in judged["operating_points"][default]["ppv_npv"]
    )
    terms = provenance.licence or "not stated: ask where the films come from."
    return f"""# Model card: {description.name}

**{NOT_A_DIAGNOSIS}**

The network {config.backbone} with a `{config.head}` head, at {config.size} x {config.size} pixels. It tells frontal
chest X-rays with the label PNEUMONIA from those with the label NORMAL.

## Intended use
Education and research: how a classifier is trained, quantised, calibrated and measured, and what it can and cannot do.

## Out of scope
Diagnosis, triage or treatment of anybody. People whom it was never shown (see below). Lateral films, other body parts,
CT. Any other disease: a film that is not NORMAL need not be pneumonia. The verdict is withheld where the picture does
not look like the training films, but that check proves nothing.

## Whom it knows
{_population(description)}

{never_shown(provenance.sites)}

Data: {provenance.data}. Splits are by patient.

## Training
Started from {config.started_from}. {config.epochs} epochs at most, batches of {config.batch_size}, peak learning rate
{config.learning_rate:g}, seed {config.seed}; the epoch with the best AUC on perturbed validation films was kept.
Trained on {config.trained}.

## How good it is
The Keras model at the `{default}` operating point, with 95 % intervals bootstrapped by patient. {measured} All
sites share one calibration and one threshold; in the mean each site counts the same.

| films | site | n | AUC | accuracy | sensitivity | specificity | calibration error |
| --- | --- | --- | --- | --- | --- | --- | --- |
{_quality(metrics, default)}

{_elsewhere(metrics, elsewhere, default)}
{_pointing(metrics, description)}
Each file on the {parity["validation_films"]} validation films, run by the engine that ships, with the same intervals
(flips: right verdicts lost / won against the Keras model):

| file | precision | size | films | AUC | accuracy | sensitivity | specificity | flips |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{files}

## Operating points
Chosen on validation films, clean and perturbed together; each site counts the same.

| name | threshold | sensitivity | specificity |
| --- | --- | --- | --- |
{points}

## Calibration and prevalence
probability = sigmoid({calibration.scale:.4f} x logit {calibration.offset:+.4f}). It holds where
{calibration.prevalence:.1%} of the films show pneumonia; elsewhere, state the share
with `--prevalence`. How often a verdict is right (PPV of PNEUMONIA, NPV of NORMAL) depends on that share:

| share with pneumonia | PPV | NPV |
| --- | --- | --- |
{prevalence}

## Limits
{_places(provenance.sites)} At another place sensitivity and specificity will differ, and must be measured there before
anyone relies on them. Labels were read from films, not proven by culture. The network may have learned from markers,
tubes and exposure more than from lungs.

## Licences
Code: Apache-2.0. Weights: the terms of the films that they were learned from hold for them too: {terms}
Weights that training started from: {find_backbone(config.backbone).licence if config.weights != "none" else "none."}
"""


def _population(description: Description) -> str:
    sites = description.provenance.sites
    if not sites:
        return "Not stated."
    lines = []
    # Phantoms say so themselves.
    if "phantom" in description.provenance.data:
        lines += ["Synthetic drawings, no patients. **This model says nothing about real films.**", ""]
    lines += [
        "| site | films it learned from | patients | ages | views | source |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for site in sites:
        learned = ", ".join(f"{site.films.get(f'train/{label}', 0)} {label}" for label in LABELS)
        ages = (
            f"{site.ages.low:g} to {site.ages.high:g}, "
            + (f"median {site.ages.median:g} (known of {site.ages.known})" if site.ages.known else "as its source says")
            if site.ages
            else "not stated"
        )
        views = ", ".join(f"{count} {view}" for view, count in site.views.items()) or "not stated"
        cells = (site.name, learned, str(site.patients), ages, views, site.source)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def never_shown(sites: Sequence[Site]) -> str:
    """Returns a plain paragraph on what a model has not seen, from what its sites state of themselves."""
    if not sites:
        return "It is not stated whom its training films show, so nobody can say whom it was never shown."
    names = [site.name for site in sites]
    text = [f"It has never been shown a film of any place but {_listed(names)}."]
    aged = [site for site in sites if site.ages]
    if aged:
        low, high = min(s.ages.low for s in aged if s.ages), max(s.ages.high for s in aged if s.ages)
        text.append(
            f"Where ages are known ({_listed([s.name for s in aged])}) it has seen people of {low:g} to {high:g} "
            "years, and hardly anybody younger or older."
        )
        if low >= _GROWN_UP:
            text.append("Children are not among them.")
        if high < _GROWN_UP:
            text.append("Adults are not among them.")
    unaged = [site.name for site in sites if not site.ages]
    if unaged:
        text.append(f"The ages of {_listed(unaged)} are not stated.")
    views = sorted({view for site in sites for view in site.views})
    if views:
        text.append(f"The views that are stated are {_listed(views)}; no other was shown to it on purpose.")
    else:
        text.append("Views are not stated; the films are meant to be frontal.")
    return " ".join(text)


def _places(sites: Sequence[Site]) -> str:
    if not sites:
        return "Where its films were taken is not stated."
    return f"{len(sites)} site{'s' * (len(sites) > 1)} and their scanners: {_listed([s.name for s in sites])}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _quality(metrics: dict[str, Any], default: str) -> str:
    rows = []
    for part, title in _PARTS.items():
        measured = metrics.get(part)
        if not measured:
            continue
        sites = measured["sites"]
        if len(sites) > 1:
            rows.append(_quality_row(title, f"mean of {len(sites)}", measured["n"], measured["mean"], default))
        rows += [_quality_row(title, site, m["n"], m, default) for site, m in sites.items()]
        rows += [_one_class_row(title, site, m, default) for site, m in measured.get("one_class", {}).items()]
    return "\n".join(rows)


def _quality_row(title: str, site: str, n: int, m: Mapping[str, Any], default: str) -> str:
    at = m["operating_points"][default]
    return (
        f"| {title} | {site} | {n} | {_interval(m['auc'], 4)} | {_interval(at['accuracy'])} "
        f"| {_interval(at['sensitivity'])} | {_interval(at['specificity'])} | {m['ece']['value']:.3f} |"
    )


def _one_class_row(title: str, site: str, m: Mapping[str, Any], default: str) -> str:
    right = _interval(m["right"][default])
    shares = f"| {right} | |" if m["label"] == LABELS[1] else f"| | {right} |"
    return f"| {title} | {site} | {m['n']} {m['label']} | | {shares} |"


def _elsewhere(metrics: dict[str, Any], record: Mapping[str, Any] | None, default: str) -> str:
    """Returns the results at sites that were left out of training: by `sites.json`, or those of this run."""
    head = ["| site | n | AUC | sensitivity | specificity |", "| --- | --- | --- | --- | --- |"]
    if record:
        rows = []
        for result in record["results"]:
            m, alone = result["measures"], result["one_class"]
            if m:
                rows.append(_elsewhere_row(result["site"], str(m["n"]), m["auc"], m["operating_points"]["balanced"]))
            else:
                right = _interval(alone["right"]["balanced"])
                shares = f"{right} |" if alone["label"] == LABELS[1] else f"| {right}"
                rows.append(f"| {result['site']} | {alone['n']} {alone['label']} | | {shares} |")
        mean = record["mean"]
        if mean:
            rows.append(_elsewhere_row("mean", f"{mean['sites']} sites", mean["auc"], mean))
        settings = record["settings"]
        recipe = f"{settings['backbone']}, {settings['head']}, {settings['size']} pixels, {settings['epochs']} epochs"
        text = f"Trained without a site and judged on it, at the threshold of the others ({recipe}):"
        return "\n".join([text, "", *head, *rows, ""])
    left_out = metrics.get("left_out")
    if left_out:
        rows = [
            _elsewhere_row(site, str(m["n"]), m["auc"], m["operating_points"][default])
            for site, m in left_out["sites"].items()
        ]
        return "\n".join(["Films of a site that was left out of training:", "", *head, *rows, ""])
    return "How good it is at a site that it has not learned from has not been measured.\n"


def _elsewhere_row(site: str, n: str, auc: dict[str, float], at: Mapping[str, Any]) -> str:
    return f"| {site} | {n} | {_interval(auc, 4)} | {_interval(at['sensitivity'])} | {_interval(at['specificity'])} |"


def _pointing(metrics: dict[str, Any], description: Description) -> str:
    """Returns how well the heatmap points into radiologists' boxes, if any film has one."""
    part = "test" if metrics.get("test") else "validation"
    pointing = metrics[part].get("pointing")
    if not pointing or not pointing["sites"]:
        return "Whether the heatmap points at the disease has not been measured: no film had a box around an opacity.\n"
    lines = [
        f"Where the heatmap points, against radiologists' boxes ({part} films, Keras model; in the last column one "
        "fixed map, the mean of all):",
        "",
        "| site | films | boxes cover | points into a box | pixel AUC | IoU of region and boxes | mean map points |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for site, sizes in pointing["sites"].items():
        m = sizes["all"]
        overlap = _interval(m["iou"], 3) if "iou" in m else "no region"
        lines.append(
            f"| {site} | {m['films']} | {m['boxes_cover']['value']:.1%} | {_interval(m['points'])} "
            f"| {_interval(m['pixel_auc'], 3)} | {overlap} | {_interval(m['mean_map_points'])} |"
        )
    normals = "; ".join(f"{site} {m['with_region']['value']:.1%}" for site, m in pointing["normals"].items())
    if normals:
        lines += ["", f"Normal films that get a region, at the {description.default_operating_point} point: {normals}."]
    return "\n".join([*lines, ""])


def _interval(value: Mapping[str, float], digits: int | None = None) -> str:
    if digits is None:
        return f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
