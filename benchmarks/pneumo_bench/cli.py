"""pneumo-bench: measures how fast and how accurate models are, and how fast training, archive and service are."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from pneumo_edge.command_line import FAILED, NOT_A_DIAGNOSIS, print_version, run, say
from pneumo_edge.errors import UsageError

if TYPE_CHECKING:
    from pneumo_bench.accuracy import Split
    from pneumo_bench.output import Table

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measures bundles on this machine: how fast they are, and how often they are right.",
    epilog=NOT_A_DIAGNOSIS,
)

Models = Annotated[
    list[Path] | None,
    typer.Option(
        "--model",
        metavar="BUNDLE",
        help="Bundle that pneumo-export wrote; repeatable. The one that comes with pneumo by default.",
    ),
]
Judge = Annotated[
    Path | None,
    typer.Option(metavar="BUNDLE", help="Bundle that judges; the one that comes with pneumo by default."),
]
Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[SITE=]PATH",
        help="Folder with test/NORMAL and test/PNEUMONIA, or a manifest; repeatable. With --run: place of its films.",
    ),
]
Held = Annotated[
    Path | None,
    typer.Option("--run", metavar="RUN", help="Run whose validation films are used instead of those in test/."),
]
Output = Annotated[Path | None, typer.Option(metavar="DIR", help="Folder to write JSON, Markdown and figures into.")]
Baseline = Annotated[
    str | None, typer.Option(metavar="NAME", help="Row by which the others are divided; the first by default.")
]
Sample = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Folder of films to measure with; new phantoms by default.")
]


class SplitName(StrEnum):
    """Films that are judged."""

    test = "test"
    validation = "validation"


@app.callback()
def bench(
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Holds the options before the subcommand."""


@app.command()
def latency(
    model: Models = None,
    run_folder: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="RUN", help="Run whose Keras model is timed too; repeatable; needs TensorFlow."),
    ] = None,
    threads: Annotated[
        str | None, typer.Option(help="Numbers of threads for one film, such as 1,2; one and all cores by default.")
    ] = None,
    queries: Annotated[
        int, typer.Option(min=10, help="Films in each round, one at a time; p99 needs 100 or more.")
    ] = 200,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each engine has one turn in each.")] = 5,
    baseline: Baseline = None,
    films: Sample = None,
    output: Output = None,
) -> None:
    """Times one film at a time: every file of every bundle, and other engines on the same weights."""
    from pneumo_bench.inputs import open_bundles
    from pneumo_bench.latency import latency_table, time_all
    from pneumo_bench.output import make_folder
    from pneumo_bench.plots import draw_latency

    counts = _parse_threads(threads)
    if output is not None:
        make_folder(output)
    record = time_all(
        open_bundles(model or []),
        run_folder or [],
        threads=counts,
        queries=queries,
        rounds=rounds,
        baseline=baseline,
        films=films,
    )
    _publish(output, "latency", record, [latency_table(record)], draw_latency)
    if record["failed"] or not record["results"]:
        raise typer.Exit(FAILED)


@app.command(epilog=NOT_A_DIAGNOSIS)
def accuracy(
    model: Models = None,
    data: Data = None,
    split: Annotated[
        SplitName, typer.Option(help="test: the films in test/; validation: the films that a run has held back.")
    ] = SplitName.test,
    run_folder: Annotated[
        Path | None,
        typer.Option("--run", metavar="RUN", help="Run whose validation films are judged, as they are and disturbed."),
    ] = None,
    latency_file: Annotated[
        Path | None,
        typer.Option("--latency", metavar="FILE", help="A latency.json: draws accuracy against latency."),
    ] = None,
    not_chest: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Pictures that are no frontal chest films: counts how many get no verdict."),
    ] = None,
    output: Output = None,
) -> None:
    """Counts how often every file of every bundle is right on the films of a split, and points at the right place."""
    from pneumo_bench.accuracy import accuracy_tables, judge_all, other_pictures, test_split, validation_split
    from pneumo_bench.inputs import open_bundles
    from pneumo_bench.output import make_folder, save, show
    from pneumo_bench.plots import draw_accuracy, draw_accuracy_against_latency, draw_robustness

    if (split is SplitName.validation) != (run_folder is not None):
        raise UsageError("--split validation and --run RUN go together: the run knows which films it has held back")
    if latency_file is not None and output is None:
        raise UsageError("--latency is for a figure: name a folder for it with --output")
    timed = None if latency_file is None else _read_latency(latency_file)
    if output is not None:
        make_folder(output)
    bundles = open_bundles(model or [])
    if run_folder is not None:
        films = validation_split(run_folder, data or ())
    elif data:
        films = test_split(data)
    else:
        raise UsageError("no films named: give --data DIR, the folder with test/")
    record = judge_all(bundles, films, None if not_chest is None else other_pictures(not_chest))
    tables = accuracy_tables(record)
    show(tables)
    say(NOT_A_DIAGNOSIS)
    if output is not None:
        stem = f"accuracy-{split.value}"
        save(output, stem, record, tables)
        draw_accuracy(output / f"{stem}.png", record)
        written = [f"{stem}.json", f"{stem}.md", f"{stem}.png"]
        if split is SplitName.validation:
            draw_robustness(output / "robustness.png", record)
            written.append("robustness.png")
        if timed is not None:
            untimed = draw_accuracy_against_latency(output / f"{stem}-latency.png", record, timed)
            written.append(f"{stem}-latency.png")
            for name in untimed:
                say(f"{latency_file} has no times of {name}")
        say(f"written to {output}: {', '.join(written)}")
    if record["missing"] or record["settings"]["unreadable"]:
        raise typer.Exit(FAILED)


@app.command(epilog=NOT_A_DIAGNOSIS)
def faithful(
    model: Models = None,
    data: Data = None,
    run_folder: Held = None,
    films: Annotated[int, typer.Option(min=1, help="Most films labelled PNEUMONIA of each site.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Seed that draws the films, and the other piece of each.")] = 0,
    output: Output = None,
) -> None:
    """Hides the region of films with pneumonia, and another piece, and compares how far the logit falls."""
    from pneumo_bench.faithful import faithful_table, hide_all
    from pneumo_bench.inputs import open_bundles
    from pneumo_bench.output import make_folder

    if output is not None:
        make_folder(output)
    bundles = open_bundles(model or [])
    split = _films_named(run_folder, data)
    record = hide_all(bundles, split, films=films, seed=seed)
    _publish(output, f"faithful-{split.name}", record, [faithful_table(record)])
    if record["missing"] or record["settings"]["unreadable"]:
        raise typer.Exit(FAILED)


@app.command(epilog=NOT_A_DIAGNOSIS, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def sites(
    context: typer.Context,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="[SITE=]PATH", help="Folder of films or manifest, as for pneumo-train; repeatable."),
    ] = None,
    run_folder: Annotated[
        list[Path] | None,
        typer.Option("--run", metavar="RUN", help="Finished run with --leave-out, instead of a training; repeatable."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the runs in --output; finished ones are kept.")
    ] = False,
    output: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder for runs/, sites.json, sites.md and sites.png.")
    ] = Path("sites"),
) -> None:
    """Leaves each site out in turn, trains on the others, and judges it. Any option of pneumo-train may follow."""
    from pneumo_bench.output import make_folder
    from pneumo_bench.plots import draw_sites
    from pneumo_bench.sites import judge_left_out, run_folders, site_names, sites_table, train_without

    training = list(context.args)
    for taken in ("--leave-out", "--output", "--test"):
        if any(text.split("=")[0] == taken for text in training):
            raise UsageError(f"{taken} is not for pneumo-bench sites: it leaves out each site in turn, by itself")
    if bool(data) == bool(run_folder):
        raise UsageError("give --data for each data set, to train without each site, or --run for each finished run")
    if run_folder and training:
        raise UsageError(f"{training[0]} is for training, and finished runs are not trained: leave it out")
    make_folder(output)
    if data:
        folders = run_folders(site_names(data, training), output / "runs")
        train_without(folders, data, training, resume=resume)
        run_folder = list(folders.values())
    record = judge_left_out(run_folder or [])
    _publish(output, "sites", record, [sites_table(record)], draw_sites)


@app.command(epilog=NOT_A_DIAGNOSIS)
def calibration(
    films: Annotated[
        Path, typer.Argument(metavar="MANIFEST", help="CSV with path, label, patient, site and split: train and test.")
    ],
    model: Judge = None,
    draws: Annotated[int, typer.Option(min=1, help="Draws of each number of films.")] = 5,
    seed: Annotated[int, typer.Option(min=0, help="Of the draws.")] = 0,
    output: Output = None,
) -> None:
    """Calibrates a bundle on 20, 50, 100 and 300 training films of each site, and judges it on the test films."""
    from pneumo_bench.calibration import calibration_tables, measure_places
    from pneumo_bench.output import make_folder
    from pneumo_edge.bundle import DEFAULT_BUNDLE, read_bundle

    if output is not None:
        make_folder(output)
    record = measure_places(read_bundle(model or DEFAULT_BUNDLE), films, draws=draws, seed=seed)
    _publish(output, "calibration", record, calibration_tables(record))


@app.command(epilog=NOT_A_DIAGNOSIS)
def agreement(
    model: Models = None,
    data: Data = None,
    run_folder: Held = None,
    output: Output = None,
) -> None:
    """Compares the answers of every file in pneumo with its answers in other engines and with other kernels."""
    from pneumo_bench.agreement import agreement_table, compare_all
    from pneumo_bench.inputs import open_bundles
    from pneumo_bench.output import make_folder

    if output is not None:
        make_folder(output)
    bundles = open_bundles(model or [])
    films = _films_named(run_folder, data)
    record = compare_all(bundles, films)
    _publish(output, "agreement", record, [agreement_table(record)])
    if record["missing"] or record["settings"]["unreadable"]:
        raise typer.Exit(FAILED)


@app.command()
def end_to_end(
    model: Models = None,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each row has one new process in each.")] = 10,
    baseline: Baseline = None,
    films: Sample = None,
    output: Output = None,
) -> None:
    """Times the way from a file on disk to the verdict, in parts, with a new process and with a running one."""
    from pneumo_bench.end_to_end import end_to_end_table, time_ways
    from pneumo_bench.inputs import open_bundles
    from pneumo_bench.output import make_folder
    from pneumo_bench.plots import draw_end_to_end

    if output is not None:
        make_folder(output)
    record = time_ways(open_bundles(model or []), rounds=rounds, baseline=baseline, films=films)
    _publish(output, "end-to-end", record, [end_to_end_table(record)], draw_end_to_end)


@app.command()
def layers(
    model: Models = None,
    films: Annotated[int, typer.Option(min=1, help="How often a film is judged, one at a time.")] = 200,
    output: Output = None,
) -> None:
    """Times the operations of every ONNX file: where the time for one film goes."""
    from pneumo_bench.inputs import open_bundles
    from pneumo_bench.layers import layers_table, profile_all
    from pneumo_bench.output import make_folder

    if output is not None:
        make_folder(output)
    record = profile_all(open_bundles(model or []), films=films)
    _publish(output, "layers", record, [layers_table(record)])


@app.command()
def training(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with train/NORMAL and train/PNEUMONIA.")
    ] = None,
    backbone: Annotated[
        str, typer.Option(help="Network, by the name that pneumo-train gives it.")
    ] = "efficientnet_lite0",
    size: Annotated[
        int | None, typer.Option(help="Side of the input in pixels; the backbone's own by default.")
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the films; all count.")] = 8,
    batch_size: Annotated[int, typer.Option(min=1, help="Films in one step.")] = 32,
    films: Annotated[int, typer.Option(min=0, help="Approximate number of training films; 0 for all.")] = 640,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each way has one turn in each.")] = 1,
    output: Output = None,
) -> None:
    """Times fine-tuning against the usual way in Keras; needs TensorFlow."""
    from pneumo_bench.output import make_folder
    from pneumo_bench.training import time_both, training_table

    if data is None:
        raise UsageError("no films named: give --data DIR, the folder with train/")
    if output is not None:
        make_folder(output)
    record = time_both(
        data,
        backbone=backbone,
        size=size,
        epochs=epochs,
        batch_size=batch_size,
        films=films,
        rounds=rounds,
    )
    _publish(output, "training", record, [training_table(record)])


@app.command()
def archive(
    model: Judge = None,
    films: Annotated[int, typer.Option(min=4, help="Films to judge, made from phantoms.")] = 20_000,
    paths: Annotated[int, typer.Option(min=1, help="Paths to list.")] = 1_000_000,
    batch: Annotated[int, typer.Option(min=1, help="Films in one part.")] = 500,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds; each judges an equal share of the films.")] = 2,
    output: Output = None,
) -> None:
    """Times pneumo-archive with one and two workers against a bare loop, and estimates millions of films."""
    from pneumo_bench.archive import archive_tables, time_archive
    from pneumo_bench.output import make_folder
    from pneumo_bench.plots import draw_archive

    if output is not None:
        make_folder(output)
    record = time_archive(model=model, films=films, paths=paths, batch=batch, rounds=rounds)
    _publish(output, "archive", record, archive_tables(record), draw_archive)


@app.command()
def serve(
    model: Judge = None,
    films: Annotated[int, typer.Option(min=20, help="Phantoms that are sent over DICOM.")] = 500,
    associations: Annotated[int, typer.Option(min=1, help="Senders at the same time.")] = 4,
    kills: Annotated[int, typer.Option(min=0, help="Times that pneumo-serve is killed, with kill -9.")] = 20,
    away: Annotated[float, typer.Option(min=0, help="Seconds without a PACS.")] = 60.0,
    jumps: Annotated[int, typer.Option(min=0, help="Times that its clock is set, up to 400 days off.")] = 10,
    seed: Annotated[int, typer.Option(help="Seed that draws the moments of the kills and jumps.")] = 0,
    output: Output = None,
) -> None:
    """Sends films to pneumo-serve, kills it, sets its clock, stops the PACS, and counts the answers that arrive; needs
    Orthanc, DCMTK and a C compiler."""
    from pneumo_bench.output import make_folder
    from pneumo_bench.serve import crash_table, is_whole, measure_crashes

    if output is not None:
        make_folder(output)
    record = measure_crashes(
        films=films, kills=kills, away=away, jumps=jumps, associations=associations, seed=seed, bundle=model
    )
    _publish(output, "serve", record, [crash_table(record)])
    if not is_whole(record["crashes"]):
        raise typer.Exit(FAILED)


@app.command()
def http(
    model: Judge = None,
    queries: Annotated[
        int, typer.Option(min=1, help="Times that one film is judged, here and over HTTP in turn.")
    ] = 200,
    clients: Annotated[int, typer.Option(min=1, help="Clients that ask at the same time.")] = 100,
    requests: Annotated[int, typer.Option(min=1, help="Films that all clients together send.")] = 500,
    output: Output = None,
) -> None:
    """Times the HTTP interface of pneumo-serve against Classifier.predict, and then with many clients at once."""
    from pneumo_bench.output import make_folder
    from pneumo_bench.serve_http import http_tables, measure_http

    if output is not None:
        make_folder(output)
    record = measure_http(bundle=model, queries=queries, clients=clients, requests=requests)
    _publish(output, "http", record, http_tables(record))
    if set(record["crowd"]["statuses"]) - {"200", "429"}:
        raise typer.Exit(FAILED)


@app.command()
def web(
    model: Judge = None,
    films: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of X-ray images; phantoms where none is given.")
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="Films that are judged in each round.")] = 20,
    rounds: Annotated[int, typer.Option(min=1, help="Cold loads of the page.")] = 5,
    output: Output = None,
) -> None:
    """Times the page of pneumo-web in Chromium against the native runtime with one thread."""
    from pneumo_bench.output import make_folder
    from pneumo_bench.web import measure_web, web_tables

    if output is not None:
        make_folder(output)
    record = measure_web(bundle=model, folder=films, films=number, rounds=rounds)
    _publish(output, "web", record, web_tables(record))


@app.command()
def web_agreement(
    films: Annotated[
        list[Path], typer.Option(metavar="DIR", help="Folder of JPEG films; repeatable, and each gives as many.")
    ],
    model: Judge = None,
    number: Annotated[int, typer.Option(min=1, help="Films that are judged, of all folders together.")] = 500,
    output: Output = None,
) -> None:
    """Compares the answers of the page of pneumo-web in Chromium with those of pneumo-infer."""
    from pneumo_bench.output import make_folder
    from pneumo_bench.web_agreement import compare_web, web_agreement_table

    if output is not None:
        make_folder(output)
    record = compare_web(bundle=model, folders=films, films=number)
    _publish(output, "agreement", record, [web_agreement_table(record)])


def _films_named(run_folder: Path | None, data: list[str] | None) -> Split:
    """Returns the validation films of a run, or the films of test splits."""
    from pneumo_bench.accuracy import test_split, validation_split

    if run_folder is not None:
        return validation_split(run_folder, data or ())
    if data:
        return test_split(data)
    raise UsageError("no films named: give --run RUN for its validation films, or --data DIR for those in test/")


def _publish(
    output: Path | None,
    stem: str,
    record: dict[str, Any],
    tables: list[Table],
    draw: Callable[[Path, Mapping[str, Any]], None] | None = None,
) -> None:
    """Shows the results. If there is a folder for them, also writes them there, with a figure if `draw` is given."""
    from pneumo_bench.output import save, show

    show(tables)
    if output is None:
        return
    save(output, stem, record, tables)
    written = [f"{stem}.json", f"{stem}.md"]
    if draw is not None:
        draw(output / f"{stem}.png", record)
        written.append(f"{stem}.png")
    say(f"written to {output}: {', '.join(written)}")


def _parse_threads(threads: str | None) -> list[int]:
    from pneumo_edge.classifier import usable_cores

    if threads is None:
        return sorted({1, usable_cores()})
    try:
        counts = [int(part) for part in threads.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"--threads {threads} is no list of positive numbers: give one such as 1,2")
    return list(dict.fromkeys(counts))


def _read_latency(path: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict) or found.get("kind") != "latency":
        raise UsageError(f"{path} is no latency.json: make one with pneumo-bench latency --output")
    return found


def main() -> NoReturn:
    """Entry point of `pneumo-bench`."""
    run(app, "pneumo-bench")


if __name__ == "__main__":
    main()
