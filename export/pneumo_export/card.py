"""MODEL_CARD.md of a bundle: what it is for, what it is not for, and how good each file is."""

from __future__ import annotations

from typing import Any

from pneumo_edge.bundle import Description
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_train.backbones import find_backbone
from pneumo_train.run import Config


def model_card(description: Description, config: Config, metrics: dict[str, Any], parity: dict[str, Any]) -> str:
    """Returns the card as Markdown.

    Args:
        description: Of the bundle.
        config: `config.json` of the run.
        metrics: `metrics.json` of the run.
        parity: `parity.json` of the export.
    """
    phantoms = "phantom" in description.provenance.data
    population = (
        "Synthetic drawings, no patients. **This model says nothing about real films.**"
        if phantoms
        else "Where the data are the set of Kermany et al.: children of 1 to 5 years at one hospital, Guangzhou Women "
        "and Children's Medical Center."
    )
    calibration = description.calibration
    points = "\n".join(
        f"| {name}{' (default)' if name == description.default_operating_point else ''} | {point.threshold:.4f} "
        f"| {_interval(vars(point.sensitivity))} | {_interval(vars(point.specificity))} |"
        for name, point in description.operating_points.items()
    )
    test = metrics.get("test")
    measured = (
        f"The test split has been measured {test['measured']} time(s) with the Keras model."
        if test
        else "The test split has not been measured."
    )
    parts = [("validation", "validation"), ("validation_perturbed", "validation, perturbed"), ("test", "test")]
    default = description.default_operating_point
    quality = "\n".join(
        f"| {title} | {metrics[part]['n']} | {_interval(metrics[part]['auc'], 4)} "
        f"| {_interval(metrics[part]['operating_points'][default]['accuracy'])} "
        f"| {_interval(metrics[part]['operating_points'][default]['sensitivity'])} "
        f"| {_interval(metrics[part]['operating_points'][default]['specificity'])} "
        f"| {metrics[part]['ece']['value']:.3f} |"
        for part, title in parts
        if metrics.get(part)
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
    films = ", ".join(f"{count} {part}" for part, count in sorted(description.provenance.films.items()))
    return f"""# Model card: {description.name}

**{NOT_A_DIAGNOSIS}**

The network {config.backbone} with a `{config.head}` head, at {config.size} x {config.size} pixels. It tells frontal
chest X-rays with the label PNEUMONIA from those with the label NORMAL.

## Intended use
Education and research: how a classifier is trained, quantised, calibrated and measured, and what it can and cannot do.

## Out of scope
Diagnosis, triage or treatment of anybody. Adults. Lateral films, other body parts, CT. Any other disease: a film that
is not NORMAL need not be pneumonia. The verdict is withheld where the picture does not look like the training films,
but that check is no proof.

## Population and data
{population}

Data: {description.provenance.data}. Films: {films}. Splits are by patient.

## Training
Started from {config.started_from}. {config.epochs} epochs at most, batches of {config.batch_size}, peak learning rate
{config.learning_rate:g}, seed {config.seed}; the epoch with the best AUC on perturbed validation films was kept.
Trained on {config.trained}.

## How good it is
The Keras model at the `{default}` operating point, with 95 % intervals bootstrapped by patient. {measured}

| films | n | AUC | accuracy | sensitivity | specificity | calibration error |
| --- | --- | --- | --- | --- | --- | --- |
{quality}

Each file on the {parity["validation_films"]} validation films, run by the engine that ships, with the same intervals
(flips: right verdicts lost / won against the Keras model):

| file | precision | size | films | AUC | accuracy | sensitivity | specificity | flips |
| --- | --- | --- | --- | --- | --- | --- | --- | --- |
{files}

## Operating points
Chosen on validation films, clean and perturbed together.

| name | threshold | sensitivity | specificity |
| --- | --- | --- | --- |
{points}

## Calibration and prevalence
probability = sigmoid({calibration.scale:.4f} x logit {calibration.offset:+.4f}). It holds where
{calibration.prevalence:.1%} of the films show pneumonia, as in the validation set; `--prevalence` moves it. What a
verdict is worth elsewhere:

| share with pneumonia | PPV | NPV |
| --- | --- | --- |
{prevalence}

## Limits
One hospital and its scanners: at another site sensitivity and specificity will differ, and must be measured there
before anyone relies on them. Adults are not covered. Labels were read from films, not proven by culture. Markers,
tubes and exposure may have taught the network more than lungs did.

## Licences
Model files: Apache-2.0. Data: as its source says (the set of Kermany et al. is CC BY 4.0).
Weights the backbone started from: {find_backbone(config.backbone).licence if config.weights != "none" else "none."}
"""


def _interval(value: dict[str, float], digits: int | None = None) -> str:
    if digits is None:
        return f"{value['value']:.1%} ({value['low']:.1%} to {value['high']:.1%})"
    return f"{value['value']:.{digits}f} ({value['low']:.{digits}f} to {value['high']:.{digits}f})"
