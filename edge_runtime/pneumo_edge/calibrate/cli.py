"""pneumo-calibrate: fits a bundle to the films of a place, and says whether it may be used there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pneumo_edge.command_line import (
    DONE,
    FAILED,
    NOT_A_DIAGNOSIS,
    print_table,
    print_version,
    quiet_libraries,
    run,
    say,
)
from pneumo_edge.errors import UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command(epilog=NOT_A_DIAGNOSIS)
def calibrate(
    films: Annotated[
        Path | None,
        typer.Argument(
            metavar="FILMS",
            help="Folder with NORMAL/ and PNEUMONIA/, or a CSV file with the columns path and label, and where known "
            "patient, age, sex, view, machine ...",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Bundle to start from; the one that comes with pneumo by default."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(metavar="NEW_BUNDLE", help="Folder for the new bundle; must not be there yet.")
    ] = None,
    name: Annotated[
        str | None, typer.Option(metavar="PLACE", help="What the place is called; the name of FILMS by default.")
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="Share of films with pneumonia where it will be used, between 0 and 1; that of FILMS by default. With "
            "--plan that of the films that are collected.",
        ),
    ] = None,
    screening: Annotated[
        float, typer.Option(metavar="S", help="Sensitivity that the operating point screening is to have at least.")
    ] = 0.98,
    sensitivity: Annotated[
        list[float] | None,
        typer.Option(metavar="S", help="One more operating point, with so much sensitivity at least; repeatable."),
    ] = None,
    specificity: Annotated[
        list[float] | None,
        typer.Option(metavar="S", help="One more operating point, with so much specificity at least; repeatable."),
    ] = None,
    cost: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MISSED:FALSE_ALARM",
            help="One more operating point, the cheapest where a missed pneumonia and a false alarm cost so much, such "
            "as 10:1; repeatable.",
        ),
    ] = None,
    accept_films: Annotated[
        bool, typer.Option("--accept-films", help="Move the limit of novelty so that good films here get verdicts.")
    ] = False,
    no_pictures: Annotated[
        bool, typer.Option("--no-pictures", help="Show no film in calibration.html, so that it may leave the hospital.")
    ] = False,
    plan: Annotated[
        bool, typer.Option("--plan", help="Say how many films are needed, and stop; with --sensitivity, --margin ...")
    ] = False,
    margin: Annotated[
        float, typer.Option(metavar="M", help="With --plan: half of the width of the 95 % interval.")
    ] = 0.05,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Calibrates a bundle on the films of a place, and judges it there."""
    from pneumo_edge.classifier import check_prevalence

    check_prevalence(prevalence)
    if plan:
        _plan(sensitivity or [0.95], specificity, margin, 0.5 if prevalence is None else prevalence)
        return
    if films is None:
        raise UsageError("no films named: give a folder with NORMAL/ and PNEUMONIA/, or a manifest")
    if output is None:
        raise UsageError("no place for the new bundle: give --output")
    if output.exists():
        raise UsageError(f"{output} exists already: give another --output")
    from pneumo_edge.bundle import DEFAULT_BUNDLE, read_bundle
    from pneumo_edge.calibrate.card import POINT_COLUMNS, point_row
    from pneumo_edge.calibrate.films import read_films
    from pneumo_edge.calibrate.fit import STANDARD, Wish
    from pneumo_edge.calibrate.place import calibrate as fit_to_place
    from pneumo_edge.calibrate.write import CARD, PAGE, write_bundle

    wishes = STANDARD | {"screening": Wish("sensitivity", _share("--screening", screening))}
    for kind, values in (("sensitivity", sensitivity), ("specificity", specificity)):
        wishes |= {f"{kind}-{value:g}": Wish(kind, _share(f"--{kind}", value)) for value in values or ()}
    wishes |= {f"cost-{text}": Wish("cost", _cost(text)) for text in cost or ()}
    bundle = read_bundle(model or DEFAULT_BUNDLE)
    say(NOT_A_DIAGNOSIS)
    found = read_films(films)
    place = name or films.resolve().stem
    result = fit_to_place(bundle, found, place, wishes, prevalence=prevalence, accept_films=accept_films)
    write_bundle(bundle, result, output, pictures=not no_pictures)
    site_prevalence = result.fit.calibration.prevalence
    print_table(
        f"{result.description.name} at {place}: {len(result.answers.labels)} films, at a prevalence of "
        f"{site_prevalence:.1%}\n95 % intervals by patient; no film was judged by a threshold that it had chosen",
        POINT_COLUMNS,
        [point_row(result, each) for each in result.worths],
    )
    print(
        f"calibration error {result.ece_before:.3f} before, {result.ece_after:.3f} now; "
        f"{len(result.withheld)} of {len(result.films)} films get no verdict"
    )
    print(result.verdict)
    for each in result.remarks:
        say(f"note: {each}")
    for i, why in result.unreadable.items():
        say(f"not used: {result.films[i].name}: {why}")
    say(f"written to {output}: look at {PAGE} with a doctor, and keep {CARD}")
    raise typer.Exit(FAILED if result.unreadable else DONE)


def _share(option: str, value: float) -> float:
    if not 0 < value < 1:
        raise UsageError(f"{option} {value:g} is not between 0 and 1: give a share such as 0.95")
    return value


def _cost(text: str) -> float:
    """Returns what a missed pneumonia costs, in false alarms."""
    try:
        missed, alarm = (float(part) for part in text.split(":"))
    except ValueError:
        missed = alarm = 0.0
    if not (0 < missed < 1e9 and 0 < alarm < 1e9):
        raise UsageError(f"--cost {text} is not two numbers above 0: give them as 10:1, a missed pneumonia first")
    return missed / alarm


def _plan(sensitivities: list[float], specificities: list[float] | None, margin: float, prevalence: float) -> None:
    from pneumo_edge.calibrate.measure import wilson
    from pneumo_edge.calibrate.plan import buderer, exact
    from pneumo_edge.calibrate.plan import plan as work_out

    if len(sensitivities) > 1 or len(specificities or ()) > 1:
        raise UsageError("--plan is for one --sensitivity and one --specificity: give each once")
    sensitivity = sensitivities[0]
    specificity = specificities[0] if specificities else sensitivity
    rows = []
    for title, interval in (("Wilson", wilson), ("exact (Clopper-Pearson)", exact)):
        needed = work_out(sensitivity, specificity, margin, prevalence, interval)
        rows.append((title, f"{needed.ill:,}", f"{needed.well:,}", f"{needed.films:,}"))
    ill, well = buderer(sensitivity, margin), buderer(specificity, margin)
    rows.append(("Wald (Buderer 1996), too few", f"{ill:,}", f"{well:,}", f"{_films(ill, well, prevalence):,}"))
    print_table(
        f"To know a sensitivity of {sensitivity:.1%} and a specificity of {specificity:.1%} to within "
        f"{100 * margin:g} points\nfilms: as they come, one of each patient, {prevalence:.1%} of them with pneumonia",
        ("95 % interval", "patients with pneumonia", "without", "films"),
        rows,
    )
    print("Sources: Buderer, Acad Emerg Med 1996;3:895; Flahault et al., J Clin Epidemiol 2005;58:859.")


def _films(ill: int, well: int, prevalence: float) -> int:
    from math import ceil

    return max(ceil(ill / prevalence - 1e-9), ceil(well / (1 - prevalence) - 1e-9))


def main() -> NoReturn:
    """Entry point of `pneumo-calibrate`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    quiet_libraries()
    run(app, "pneumo-calibrate")
