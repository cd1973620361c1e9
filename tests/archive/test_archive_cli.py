"""`pneumo-archive` as a hospital runs it: the installed command, clusters, an S3 server, and what dies on the way."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image

from places import ROOT
from pneumo_edge import __version__
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_train.phantom import draw_phantoms

pytest.importorskip("distributed", reason="the extra archive is not installed")

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pneumo_edge.archive.cli import app

Command = Callable[..., list[str | Path]]
Archive = Callable[..., "subprocess.CompletedProcess[str]"]

posix = pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")

TIMES = ["read_ms", "infer_ms"]
PATIENCE = 600
"""Seconds, on a machine that is very busy."""


@pytest.fixture(scope="session")
def archive_command(installed_command: Callable[[str], Command]) -> Command:
    """Makes the command line of the installed `pneumo-archive`, on the tiny bundle unless `--model` is given."""
    return installed_command("pneumo-archive")


@pytest.fixture(scope="session")
def archive(archive_command: Command) -> Archive:
    """Runs `pneumo-archive` and returns what came of it."""

    def run(*arguments: str | Path, env: dict[str, str] | None = None, **options: Any) -> Any:
        options = {"capture_output": True, "text": True, "timeout": PATIENCE} | options
        return subprocess.run(archive_command(*arguments), env=os.environ | (env or {}), check=False, **options)

    return run


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms in folders, and what else lies in an archive."""
    folder = tmp_path_factory.mktemp("films")
    for i, film in enumerate(sorted(draw_phantoms(folder / "drawn", films=20, seed=1).rglob("*.jpeg"))):
        site = folder / f"site {i % 3}"
        site.mkdir(exist_ok=True)
        film.rename(site / film.name)
    shutil.rmtree(folder / "drawn")
    Image.fromarray(np.full((128, 128), 7, np.uint8)).save(folder / "site 0" / "ünlit.png")
    Image.fromarray(np.full((128, 128, 3), (200, 30, 30), np.uint8)).save(folder / "site 1" / "red.bmp")
    (folder / "site 1" / "text.png").write_text("no picture")
    (folder / "site 1" / "empty.dcm").touch()
    (folder / "site 2" / "README.txt").write_text("no film")
    return folder


MANY = ("--batch", "10", "--workers", "2")
MANY_PARTS = 90
MANY_FILMS = 10 * MANY_PARTS


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with more films than are done before the first of them can be interrupted."""
    folder = tmp_path_factory.mktemp("many")
    rng = np.random.default_rng(0)
    for i in range(5):
        grey = rng.integers(0, 256, (512, 512)).clip(20 * i, 150 + 20 * i).astype(np.uint8)
        Image.fromarray(grey).save(folder / f"000{i}.png")
    for i in range(5, MANY_FILMS):
        os.link(folder / f"000{i % 5}.png", folder / f"{i:04}.png")
    return folder


def parts(output: Path) -> dict[str, pa.Table]:
    """Name -> rows of each part, without the times, which are never the same."""
    files = sorted((output / "films").glob("*.parquet"))
    return {file.name: pq.read_table(file).drop_columns(TIMES) for file in files}


def standing(output: Path) -> int:
    return len(list((output / "films").glob("*.parquet"))) if (output / "films").exists() else 0


def no_traceback(stderr: str) -> bool:
    return not any(word in stderr for word in ("Traceback", "Exception ignored", "Warning", "distributed."))


@pytest.fixture(scope="module")
def undisturbed(archive: Archive, many: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of `many` of a run that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    done = archive(many, "--output", output, *MANY)
    assert done.returncode == 0, done.stderr
    assert no_traceback(done.stderr)
    return output


# ------------------------------------------------------------------------------------------------------ the servers


@pytest.fixture(scope="module")
def s3(films: Path) -> Iterator[dict[str, str]]:
    """The environment of a user of an S3 server on this machine, with the films in one bucket and room in another."""
    pytest.importorskip("moto", reason="moto is not installed")
    pytest.importorskip("s3fs", reason="s3fs is not installed")
    # The server takes a port and says which: one that was looked for beforehand could be somebody else's by then.
    code = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            environment = {
                "AWS_ACCESS_KEY_ID": "nobody",
                "AWS_SECRET_ACCESS_KEY": "nothing",
                "AWS_DEFAULT_REGION": "us-east-1",
                "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            }
            filling = "fs.mkdir('films'); fs.mkdir('results'); fs.put(sys.argv[1] + '/', 'films/2018/', recursive=True)"
            with_s3(environment, filling, films)
            yield environment
        finally:
            process.terminate()


def with_s3(environment: dict[str, str], code: str, *arguments: str | Path) -> str:
    """Runs a few lines of Python with `fs`, the S3 server, and returns what they print."""
    code = "import sys, fsspec\nfs = fsspec.filesystem('s3')\n" + code
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def dask(*arguments: str | Path, env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Runs `dask scheduler` or `dask worker` while the block runs."""
    line = [sys.executable, "-m", "dask", *map(str, arguments)]
    with subprocess.Popen(
        line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | (env or {})
    ) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def scheduler_in(folder: Path) -> Iterator[str]:
    """Yields the address of a scheduler without workers."""
    file = folder / "scheduler.json"
    with dask("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", file) as process:
        end = time.monotonic() + PATIENCE
        while not file.exists() or not file.read_text():
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.05)
        yield json.loads(file.read_text())["address"]


def worker_of(scheduler: str, folder: Path) -> tuple[str | Path, ...]:
    options = ("--nthreads", "2", "--no-dashboard", "--host", "127.0.0.1", "--local-directory")
    return "worker", scheduler, *options, folder


@pytest.fixture(scope="module")
def cluster(s3: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a scheduler with one worker of two threads, which knows the S3 server."""
    folder = tmp_path_factory.mktemp("cluster")
    with scheduler_in(folder) as address, dask(*worker_of(address, folder), env=s3) as worker:
        yield address
        assert worker.poll() is None, "it outlives what is done on it"


# ------------------------------------------------------------------------------------------------------ a folder


@pytest.fixture(scope="module")
def judged(
    archive: Archive, films: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    output = tmp_path_factory.mktemp("judged") / "out"
    return archive(films, "--output", output, "--batch", "5", "--workers", "1"), output


def test_a_folder_becomes_a_dataset_that_says_what_pneumo_infer_says(
    judged: tuple[subprocess.CompletedProcess[str], Path], films: Path, infer: Any
) -> None:
    done, output = judged
    answers = [json.loads(line) for line in infer(films, "--recursive", "--format", "json").stdout.splitlines()]
    expected = {answer["path"]: answer for answer in answers}
    table = pq.read_table(output / "films")
    assert len(table) == len(expected) == 24
    for row in table.to_pylist():
        answer = expected.pop(row["path"])
        assert (row.pop("read_ms") is None) == (row.pop("infer_ms") is None) == ("error" in answer)
        answer.pop("milliseconds", None)
        assert row.pop("part") >= 0
        assert {name: value for name, value in row.items() if value is not None} == {
            name: value for name, value in answer.items() if value is not None
        }
    assert expected == {}
    assert len(parts(output)) == 5
    assert sorted(path.name for path in output.iterdir()) == [
        "archive.json", "films", "plan", "report.html", "summary.json",
    ]  # fmt: skip
    assert done.returncode == 1, "two films cannot be read"


def test_what_is_said_on_the_terminal(judged: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    done, output = judged
    said = done.stderr.splitlines()
    assert said[0] == NOT_A_DIAGNOSIS
    assert said[1].startswith("dashboard: http://127.0.0.1:")
    assert said[2:] == [
        "24 films listed",
        "not listed: 1 files called *.txt",
        f"written to {output}: films/, summary.json, report.html",
    ]
    [line] = done.stdout.splitlines()
    assert line.startswith("24 films: ")
    assert "2 could not be judged" in line
    assert "films/s in this run" in line


def test_the_summary_counts_the_rows(judged: tuple[subprocess.CompletedProcess[str], Path]) -> None:
    _, output = judged
    summary = json.loads((output / "summary.json").read_text())
    rows = pq.read_table(output / "films").to_pylist()
    labels = [row["label"] for row in rows]
    assert summary["verdicts"] == {
        "PNEUMONIA": labels.count("PNEUMONIA"),
        "NORMAL": labels.count("NORMAL"),
        "withheld": sum(row["label"] is None and row["error"] is None for row in rows),
        "failed": 2,
    }
    assert summary["errors"] == {
        "is empty: copy it again from where it came": 1,
        "is not an image that can be read here: use PNG, JPEG, WebP, TIFF, BMP or DICOM": 1,
    }
    assert summary["withheld"]["the picture is in colour, an X-ray is grey"] == 1
    assert summary["milliseconds"]["infer"]["mean"] == pytest.approx(
        np.mean([row["infer_ms"] for row in rows if row["error"] is None]), abs=1
    )
    assert [(run["judged"], run["threads"]) for run in summary["runs"]] == [(24, 1)]
    assert "Archive of 24 films" in (output / "report.html").read_text(encoding="utf-8")


def test_the_queries_of_the_page_find_the_rows(
    judged: tuple[subprocess.CompletedProcess[str], Path], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "archive.md").read_text(encoding="utf-8")
    verdicts = json.loads((judged[1] / "summary.json").read_text())["verdicts"]
    [sql] = re.findall(r"^```sql\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    [python] = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    shutil.copytree(judged[1], tmp_path / "answers")

    duckdb = pytest.importorskip("duckdb", reason="duckdb is not installed")
    counting, failed = [query for query in sql.replace("answers/", f"{tmp_path}/answers/").split(";") if query.strip()]
    found = {verdict: films for verdict, films, _ in duckdb.sql(counting).fetchall()}
    assert found == {verdict: films for verdict, films in verdicts.items() if films}
    assert len(duckdb.sql(failed).fetchall()) == verdicts["failed"]

    pytest.importorskip("pandas", reason="pandas is not installed")
    done = subprocess.run(
        [sys.executable, "-c", python], cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 0, done.stderr
    for verdict in ("PNEUMONIA", "NORMAL"):
        assert not verdicts[verdict] or re.search(rf"^{verdict} +{verdicts[verdict]}$", done.stdout, re.MULTILINE)


@posix
def test_a_second_run_does_what_is_new_and_shows_it_with_the_time_left(
    archive_command: Command,
    judged: tuple[subprocess.CompletedProcess[str], Path],
    films: Path,
    cluster: str,
    tmp_path: Path,
) -> None:
    output, new_film = tmp_path / "out", films / "a new one.bmp"
    shutil.copytree(judged[1], output)
    before = parts(output)
    times = {path: path.stat().st_mtime_ns for path in (output / "films").iterdir()}
    shutil.copy(films / "site 1" / "red.bmp", new_film)
    ours, theirs = os.openpty()
    with subprocess.Popen(
        archive_command(films, "--output", output, "--scheduler", cluster),
        stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm", "COLUMNS": "120"}, text=True,
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            pass  # what Linux says when the other end is closed
        assert process.stdout is not None
        said = process.stdout.read()
    os.close(ours)
    new_film.unlink()
    after = parts(output)
    assert {name: after[name] for name in before} == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
    [new] = after.keys() - before.keys()
    assert after[new]["path"].to_pylist() == [str(new_film)]
    assert said.startswith("25 films: ")
    for words in (b"listing", b"judging", b"0/1", b"0:00:", b"25 films listed, 1 of them new", b"24 of 25 films have"):
        assert words in shown
    runs = json.loads((output / "summary.json").read_text())["runs"]
    assert [(run["judged"], run["threads"]) for run in runs] == [(24, 1), (1, 2)]


# ------------------------------------------------------------------------------------------------------ what dies


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Waits until something is so, or the process ends."""
    end = time.monotonic() + PATIENCE
    while not condition() and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.005)


def worker_processes(driver: int) -> list[psutil.Process]:
    try:
        children = psutil.Process(driver).children(recursive=True)
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]
    except psutil.NoSuchProcess:
        return []


@posix
def test_killed_workers_are_replaced_and_the_dataset_is_the_same(
    archive_command: Command, many: Path, undisturbed: Path, tmp_path: Path, chance: random.Random
) -> None:
    output, killed = tmp_path / "out", 0
    # After so long Dask's cluster gives up a worker that is not back; one that starts slowly must not be given up.
    env = os.environ | {"DASK_DISTRIBUTED__DEPLOY__LOST_WORKER_TIMEOUT": "100ms"}
    with subprocess.Popen(
        archive_command(many, "--output", output, *MANY),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env,
    ) as process:  # fmt: skip
        for moment in sorted(chance.sample(range(MANY_PARTS // 2), 2)):
            wait_for(lambda at=moment: standing(output) >= at, process)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.05))
            for worker in worker_processes(process.pid):
                worker.kill()
                killed += 1
        said, stderr = process.communicate(timeout=PATIENCE)
    assert killed >= 2
    assert process.returncode == 0, stderr
    assert no_traceback(stderr)
    assert said.startswith(f"{MANY_FILMS} films: ")
    assert parts(output) == parts(undisturbed)
    assert not (output / "unfinished").exists()


@pytest.fixture
def chance() -> random.Random:
    """Another one in each run; its seed is printed where the test fails."""
    seed = time.time_ns()
    print(f"chance: random.Random({seed})")
    return random.Random(seed)  # noqa: S311


@posix
def test_ctrl_c_is_heeded_while_the_cluster_starts(
    archive_command: Command, many: Path, tmp_path: Path, ctrl_c: None
) -> None:
    # Workers begin when they are let: on a busy machine the cluster could stand before this process has seen any.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys, time\n"
        "while any('spawn_main' in each for each in sys.orig_argv) and not os.path.exists(os.environ['GO']):\n"
        "    time.sleep(0.01)\n"
    )
    env = os.environ | {"PYTHONPATH": str(tmp_path), "GO": str(tmp_path / "go")}
    with subprocess.Popen(
        archive_command(many, "--output", tmp_path / "out", "--workers", "1"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env,
    ) as process:  # fmt: skip
        wait_for(lambda: bool(worker_processes(process.pid)), process)
        os.killpg(process.pid, signal.SIGINT)
        (tmp_path / "go").touch()
        stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 130, stderr
    assert no_traceback(stderr)
    assert not (tmp_path / "out").exists()


@posix
def test_a_driver_that_is_interrupted_and_killed_goes_on_and_the_dataset_is_the_same(
    archive: Archive,
    archive_command: Command,
    many: Path,
    undisturbed: Path,
    cluster: str,
    tmp_path: Path,
    ctrl_c: None,
    chance: random.Random,
) -> None:
    output = tmp_path / "out"
    first, second = sorted(chance.sample(range(1, MANY_PARTS // 2), 2))

    def stop(moment: int, blow: signal.Signals, *options: str) -> tuple[int, str]:
        with subprocess.Popen(
            archive_command(many, "--output", output, *options),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        ) as process:  # fmt: skip
            wait_for(lambda: standing(output) >= moment, process)
            time.sleep(chance.uniform(0, 0.05))
            workers = worker_processes(process.pid)
            if blow == signal.SIGINT:
                # As a terminal does: the workers get it too.
                os.killpg(process.pid, blow)
            else:
                process.send_signal(blow)
            stderr = process.communicate(timeout=PATIENCE)[1]
        # They see for themselves that the driver is gone.
        assert psutil.wait_procs(workers, timeout=PATIENCE)[1] == []
        return process.returncode, stderr

    code, stderr = stop(first, signal.SIGINT, *MANY)
    assert code == 130, stderr
    assert stderr.splitlines()[-1] == (
        "pneumo-archive: interrupted; what is done is kept, and the same command goes on from there"
    )
    assert no_traceback(stderr)
    assert first <= standing(output) < MANY_PARTS
    assert stop(second, signal.SIGKILL, "--workers", "2")[0] == -signal.SIGKILL
    before = standing(output)
    assert second <= before < MANY_PARTS
    done = archive(many, "--output", output, "--scheduler", cluster)
    assert done.returncode == 0, done.stderr
    assert f"{MANY_FILMS} films listed, 0 of them new" in done.stderr
    assert parts(output) == parts(undisturbed)
    assert not (output / "unfinished").exists()
    assert json.loads((output / "summary.json").read_text())["runs"][-1]["judged"] == MANY_FILMS - 10 * before


@posix
def test_a_film_that_ends_every_process_costs_its_row_alone(archive: Archive, films: Path, tmp_path: Path) -> None:
    (tmp_path / "deadly.py").write_text("""
import os, signal
import fsspec
from fsspec.implementations.local import LocalFileSystem

class Deadly(LocalFileSystem):
    protocol = "deadly"
    def cat_file(self, path, **options):
        if "kill" in path:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().cat_file(path.split("://")[-1], **options)

fsspec.register_implementation("deadly", Deadly, clobber=True)
""")
    good = sorted(films.rglob("*.jpeg"))[:5]
    names = [f"deadly://{film}" for film in good]
    names[2:2] = ["deadly:///kill"]
    (tmp_path / "films.csv").write_text("path\n" + "\n".join(names) + "\n")
    output = tmp_path / "out"
    # Dask tries it three times more by default: here that would only take longer.
    env = {
        "DASK_DISTRIBUTED__WORKER__PRELOAD": f"['{tmp_path / 'deadly.py'}']",
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
    }
    done = archive(tmp_path / "films.csv", "--output", output, "--batch", "3", "--workers", "1", env=env)
    assert done.returncode == 1, done.stderr
    assert no_traceback(done.stderr)
    table = pq.read_table(output / "films")
    assert table["path"].to_pylist() == names
    assert [error for error in table["error"].to_pylist() if error] == [
        "deadly:///kill ends every process that reads it: look at the file, and report it if it is a film"
    ]


# ------------------------------------------------------------------------------------------------------ clusters


def test_a_cluster_takes_folders_globs_and_manifests(
    archive: Archive, cluster: str, many: Path, films: Path, undisturbed: Path, tmp_path: Path
) -> None:
    names = sorted(path.relative_to(films).as_posix() for path in films.rglob("*.jpeg"))[:6]
    rows = "".join(f"{name},{i:05},\n" for i, name in enumerate([*names, "none.png", names[0]]))
    manifest = films / "films.csv"
    manifest.write_text("path,patient,remark\n" + rows)
    whole = archive(many, "--output", tmp_path / "whole", "--batch", "10", "--scheduler", cluster)
    some = archive(f"{films}/*1/*.p?g", "--output", tmp_path / "some", "--scheduler", cluster)
    told = archive(manifest, "--output", tmp_path / "told", "--scheduler", cluster)
    manifest.unlink()

    assert whole.returncode == 0, whole.stderr
    assert parts(tmp_path / "whole") == parts(undisturbed)
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["runs"][0]["threads"] == 2

    assert some.returncode == 1, some.stderr
    assert pq.read_table(tmp_path / "some" / "films")["path"].to_pylist() == [f"{films}/site 1/text.png"]

    assert told.returncode == 1, told.stderr
    assert "8 films listed, 7 of them new" in told.stderr
    table = pq.read_table(tmp_path / "told" / "films")
    assert table["path"].to_pylist() == [*names, "none.png"]
    assert table["patient"].to_pylist() == [f"{i:05}" for i in range(7)]
    assert table["error"].to_pylist() == [None] * 6 + ["none.png does not exist: check the path"]


def test_a_worker_whose_bundle_differs_is_refused_whenever_it_comes(
    archive_command: Command, many: Path, bundle: Path, tmp_path: Path
) -> None:
    mine, output = tmp_path / "bundle", tmp_path / "out"
    shutil.copytree(bundle, mine)
    with scheduler_in(tmp_path) as scheduler:
        line = archive_command(many, "--output", output, "--scheduler", scheduler, "--model", mine)
        with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            said = [process.stderr.readline() for _ in range(4)]
            assert said[-1] == f"{MANY_FILMS} films listed\n"
            assert "no workers yet: waiting for the first" in said[-2]
            description = json.loads((mine / "model.json").read_text())
            (mine / "model.json").write_text(json.dumps(description | {"name": "other"}))
            with dask(*worker_of(scheduler, tmp_path)):
                stderr = process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 2
    assert stderr == f"pneumo-archive: {mine} is another bundle on this worker than on the driver: copy it there\n"
    assert standing(output) == 0


# ------------------------------------------------------------------------------------------------------ object stores


def test_source_and_output_in_an_object_store(
    archive: Archive,
    s3: dict[str, str],
    cluster: str,
    films: Path,
    judged: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    arguments = ("s3://films/2018", "--output", "s3://results/chests", "--scheduler", cluster)
    done = archive(*arguments, "--batch", "5", env=s3)
    assert done.returncode == 1, done.stderr
    assert no_traceback(done.stderr)
    code = """
import json
import pandas
table = pandas.read_parquet("results/chests/films", filesystem=fs).sort_values("path")
print(json.dumps([fs.find("results/chests"), table[["path", "label", "probability", "error"]].values.tolist()]))
fs.rm("results/chests/films/part-0000002.parquet")
"""
    names, rows = json.loads(with_s3(s3, code).replace("NaN", "null"))
    assert sorted(name.removeprefix("results/chests/") for name in names) == [
        "archive.json", *(f"films/part-000000{i}.parquet" for i in range(5)), "plan/part-0000000.parquet",
        "report.html", "summary.json",
    ]  # fmt: skip
    on_disk = pq.read_table(judged[1] / "films").sort_by("path").to_pylist()
    assert len(rows) == len(on_disk)
    for row, same in zip(rows, on_disk, strict=True):
        url = same["path"].replace(str(films), "s3://films/2018")
        error = same["error"] and same["error"].replace(same["path"], url)
        assert row == [url, same["label"], same["probability"], error]
    # A second run finds all of it done but what was lost.
    again = archive(*arguments, env=s3)
    assert "24 films listed, 0 of them new" in again.stderr
    assert "19 of 24 films have been judged before" in again.stderr
    assert "24 films: " in again.stdout


def test_a_manifest_may_name_keys_of_a_bucket(
    archive: Archive, s3: dict[str, str], cluster: str, films: Path, tmp_path: Path
) -> None:
    names = sorted(path.relative_to(films).as_posix() for path in films.rglob("*.jpeg"))[:3]
    keys = [f"films/2018/{name}" for name in names]
    pq.write_table(pa.table({"path": [*keys, "films/none"], "age": [1, 2, 3, 4]}), tmp_path / "films.parquet")
    done = archive(tmp_path / "films.parquet", "--where", "s3", "--output", tmp_path / "out", "--scheduler", cluster)
    rows = pq.read_table(tmp_path / "out" / "films").to_pylist()
    assert [(row["path"], row["age"], row["error"]) for row in rows] == [
        *((key, i, None) for i, key in enumerate(keys, start=1)),
        ("films/none", 4, "films/none does not exist: check the path"),
    ]
    assert done.returncode == 1


# ------------------------------------------------------------------------------------------------------ refused


def test_what_cannot_be_begun_is_one_sentence(
    archive: Archive, judged: tuple[subprocess.CompletedProcess[str], Path], films: Path, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").touch()
    out, begun = tmp_path / "out", judged[1]
    cases: list[tuple[tuple[str | Path, ...], str]] = [
        ((tmp_path / "none", "--output", out), f"{tmp_path / 'none'} does not exist"),
        ((tmp_path / "empty", "--output", out), f"{tmp_path / 'empty'} holds no films"),
        ((films, "--output", tmp_path / "other"), "holds other files: give --output a new folder"),
        ((films / "site 0", "--output", begun), f"{begun} holds the films of {films}"),
        ((films, "--output", begun, "--batch", "7"), f"{begun} has 5 films in a part"),
        ((films, "--output", begun, "--model", DEFAULT), f"{begun} was begun with the model tiny (model.onnx)"),
        ((films, "--output", out, "--model", tmp_path), "model.json"),
        ((films, "--output", out, "--workers", "1", "--scheduler", "tcp://h:1"), "--workers is for the cluster"),
        ((films, "--output", out, "--scheduler", "nonsense://h:1"), "the scheduler nonsense://h:1 does not answer"),
        ((films, "--output", "nosuch://out"), "Protocol not known: nosuch"),
        (("", "--output", out), "a path is empty"),
        ((films, "--output", ""), "a path is empty"),
        ((films, "--output", films / "site 1" / "text.png"), "cannot hold the output (Not a directory)"),
    ]
    for arguments, words in cases:
        done = archive(*arguments)
        assert done.returncode == 2, done.stderr
        line = done.stderr.splitlines()[-1]
        assert line.startswith("pneumo-archive: ")
        assert words in line
        assert no_traceback(done.stderr)
    assert not out.exists()


def test_settings_of_dask_that_cannot_be_read_are_a_sentence(archive: Archive, films: Path, tmp_path: Path) -> None:
    for text in ("distributed: [unclosed", "- no mapping"):
        (tmp_path / "dask.yaml").write_text(text, encoding="utf-8")
        done = archive(films, "--output", tmp_path / "out", env={"DASK_CONFIG": str(tmp_path / "dask.yaml")})
        assert done.returncode == 2
        line = done.stderr.splitlines()[-1]
        assert line.startswith(f"pneumo-archive: A dask config file at '{tmp_path}/dask.yaml' is malformed")
        assert line.endswith(": mend that file, or take it away")
        assert no_traceback(done.stderr)


def test_a_machine_that_does_not_reach_itself_is_told_so(archive_command: Command, films: Path, tmp_path: Path) -> None:
    """In a network namespace of its own the loopback interface is down."""
    apart = ["unshare", "--net", "--map-root-user"]
    if shutil.which("unshare") is None or subprocess.run([*apart, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no network namespace can be made here")
    line = [*apart, *archive_command(films, "--output", tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert "this machine does not reach itself at 127.0.0.1" in done.stderr.splitlines()[-1]
    assert no_traceback(done.stderr)


def test_a_user_without_home_is_served(archive: Archive, films: Path, tmp_path: Path) -> None:
    """As in a container that runs under a number: HOME is not set, and no entry in the list of users says more."""
    code = """
import pwd, sys
def nobody(_):
    raise KeyError("uid not found")
pwd.getpwuid = nobody
from pneumo_edge.archive.cli import main
main()
"""
    environment = {name: value for name, value in os.environ.items() if name != "HOME"}
    line = [sys.executable, "-c", code, str(films), "--output", str(tmp_path / "out"), "--workers", "1"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert "written to" in done.stderr, done.stderr


DEFAULT = ROOT / "edge_runtime" / "pneumo_edge" / "default_model"


def test_a_missing_extra_is_a_sentence(tmp_path: Path) -> None:
    code = """
import sys, importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "distributed" else found(name, *rest)
from pneumo_edge.archive.cli import main
main()
"""
    line = [sys.executable, "-c", code, str(tmp_path), "--output", str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "pneumo-archive: pneumo-archive needs the package distributed: pip install 'pneumo[archive]'"
    ]


def test_help_and_version(archive: Archive) -> None:
    done = archive("--help", env={"COLUMNS": "250"})
    assert (done.returncode, done.stderr) == (0, "")
    for parameter in typer.main.get_command(app).params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
        for name in parameter.opts if parameter.param_type_name == "option" else ["SOURCE"]:
            assert name in done.stdout
    assert NOT_A_DIAGNOSIS in done.stdout
    assert archive("--version").stdout == f"pneumo {__version__}\n"


def test_help_loads_nothing_of_dask() -> None:
    code = """
import sys
from pneumo_edge.archive.cli import app
from pneumo_edge.command_line import run
try:
    run(app, "pneumo-archive")
finally:
    print(sorted({"numpy", "PIL", "onnxruntime", "dask", "distributed", "pyarrow", "fsspec"} & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "[]", "")
