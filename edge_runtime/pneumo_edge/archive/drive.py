"""The driver: it lists the films, hands out the parts, and collects counts, never rows."""

from __future__ import annotations

import hashlib
import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain, islice
from multiprocessing import resource_tracker
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from pneumo_edge import __version__
from pneumo_edge.archive import schema
from pneumo_edge.archive.counts import Counts, count_rows
from pneumo_edge.archive.listing import Source, open_source
from pneumo_edge.archive.places import Store
from pneumo_edge.archive.plan import DESCRIPTION, Description, Plan, read_description, write_description
from pneumo_edge.archive.work import Done, Job, bundle_sha256, check, do_part, judge, write_part
from pneumo_edge.bundle import Reference
from pneumo_edge.classifier import Classifier, Failure, usable_cores
from pneumo_edge.command_line import NOT_A_DIAGNOSIS, libraries_quiet, progress, quiet_libraries, say
from pneumo_edge.errors import BundleError, DataError, MissingExtraError, PneumoError, UsageError, one_line
from pneumo_edge.preprocess import VERSION as PREPROCESS_VERSION
from pneumo_edge.watch import expected_share

if TYPE_CHECKING:
    import pyarrow as pa
    from distributed import Client

BATCH = 500
"""Films in one part. They take one core some ten seconds, which is what is lost when a worker dies."""

_FOR_EACH_THREAD = 2
"""Parts handed out at a time: one that is judged and one that waits. More would only fill memory."""

_RETRIES = 2
"""Times that a failed part is tried again, such as when a store did not answer."""

_IN_A_ROW = 10
"""Parts that may fail one after the other. Then the fault is not in the parts, and the run ends."""

_ENDS_THE_RUN = (CancelledError, BundleError, MissingExtraError, UsageError)
"""Errors that end the run: the scheduler is gone, or a worker can do no part at all."""

_LOOPBACK_SECONDS = 5
"""Longest wait for a connection within this machine."""

_PATIENCE = "30s"
"""Longest wait for an answer of the scheduler."""


@dataclass
class Outcome:
    """The result of a run."""

    description: Description
    threshold: float
    """Probability from which a film is called PNEUMONIA."""
    started: str
    """Date and time, ISO 8601, UTC."""
    counts: Counts = field(default_factory=Counts)
    """Counts of all parts that are written, by this run or another."""
    films: int = 0
    """Number of films in the plan."""
    parts: int = 0
    """Number of parts in the plan."""
    missing: dict[int, int] = field(default_factory=dict)
    """Part that is not written -> number of its films."""
    failures: list[str] = field(default_factory=list)
    """One sentence for each part that was tried and failed."""
    unlisted: int = 0
    """Number of folders that could not be searched."""
    judged: int = 0
    """Number of films that this run has judged."""
    listing_seconds: float = 0.0
    """Time that the listing took."""
    seconds: float = 0.0
    """Time from the first part to the last."""
    driver_seconds: float = 0.0
    """Processor time that this process, with a scheduler on this machine, took meanwhile."""
    threads: int = 0
    """Number of threads of all workers at the end."""
    reference: Reference | None = None
    """Of the file that judges: what its answers are compared with."""
    expected: float = 0.0
    """Share of PNEUMONIA in the reference."""

    def add(self, part: int, done: Done) -> None:
        """Adds a part that is written."""
        self.counts += done.counts
        self.judged += done.judged
        del self.missing[part]


def judge_archive(
    source: str,
    output: str,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    model: Path | None = None,
    batch: int | None = None,
    where: str = "local",
) -> tuple[Store, Outcome]:
    """Judges all films of a source that have no row in the output yet.

    Args:
        source: See `listing.open_source`.
        output: Folder or URL of the dataset.
        scheduler: Address of a Dask scheduler; a cluster on this machine otherwise.
        workers: Processes of that cluster; one for each core by default.
        model: Bundle; the one that comes with pneumo by default.
        batch: Films in one part; `BATCH` by default, or what the output has.
        where: Protocol of a manifest's paths that name none.

    Raises:
        BundleError, DataError, MissingExtraError, UsageError: One sentence each. Parts that are written are kept.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    store = Store(output)
    with _usable(store):
        known = read_description(store)
    # LiteRT says on stderr how it computes.
    with libraries_quiet(), Classifier.load(model, threads=1) as classifier:
        bundle, file, point = classifier.bundle, classifier.file, classifier.operating_point
    found = open_source(source, where)
    description = Description(
        schema_version=schema.VERSION,
        preprocess_version=PREPROCESS_VERSION,
        note=NOT_A_DIAGNOSIS,
        pneumo=__version__,
        source=schema.plain_text(found.name),
        where=where,
        base=schema.plain_text(found.base),
        columns={each.name: str(each.type) for each in found.columns},
        batch=batch or (known.batch if known else BATCH),
        model=bundle.description.name,
        file=file,
        bundle_sha256=bundle_sha256(bundle.folder),
    )
    if known:
        _compare(description, known, store.url)
    plan = Plan(store, description.batch)
    first = next(found.batches, None)
    if first is None and not plan.films:
        raise DataError(f"{description.source} holds no films: give a folder, a glob or a manifest that names some")
    chosen = bundle.description.operating_points[point]
    outcome = Outcome(known or description, chosen.threshold, started)
    outcome.reference = bundle.description.files[file].reference
    if outcome.reference is not None:
        outcome.expected = expected_share(outcome.reference, bundle.description.calibration, chosen)
    with connect(scheduler, workers) as client:
        if not known:
            with _usable(store):
                write_description(store, description)
        job = Job(
            output=store.url,
            description_sha256=hashlib.sha256(store.read(DESCRIPTION) or b"").hexdigest(),
            pneumo=__version__,
            bundle=None if model is None else str(bundle.folder.absolute()),
            file=file,
            bundle_sha256=description.bundle_sha256,
            where=where,
            base=found.base,
            regions=bundle.description.files[file].region_threshold is not None,
        )
        _check_workers(client, job)
        start = time.perf_counter()
        if first is not None:
            found.batches = chain([first], found.batches)
        _list(found, plan)
        outcome.unlisted = len(found.unlisted)
        between, own = time.perf_counter(), time.process_time()
        _do_parts(client, job, plan, store, outcome)
        outcome.listing_seconds, outcome.seconds = between - start, time.perf_counter() - between
        outcome.driver_seconds = time.process_time() - own
    return store, outcome


@contextmanager
def _usable(store: Store) -> Iterator[None]:
    """Turns an error of the disk into one that names the remedy."""
    try:
        yield
    except OSError as error:
        why = error.strerror or one_line(error)
        raise UsageError(f"{store.url} cannot hold the output ({why}): give another folder to --output") from error


def _compare(wanted: Description, known: Description, output: str) -> None:
    """Checks that a run continues a dataset as it was begun.

    Raises:
        UsageError: It does not.
    """
    same = asdict(replace(wanted, pneumo=known.pneumo))
    differs = [name for name, value in asdict(known).items() if same[name] != value]
    words = {
        "source": f"holds the films of {known.source}",
        "where": f"was begun with --where {known.where}",
        "columns": f"was begun with other columns in the manifest ({', '.join(known.columns) or 'none'})",
        "batch": f"has {known.batch} films in a part",
        "model": f"was begun with the model {known.model} ({known.file})",
        "file": f"was begun with {known.file} of the model {known.model}",
        "bundle_sha256": f"was begun with another bundle of the name {known.model}",
    }
    if differs:
        otherwise = f"was begun by pneumo {known.pneumo}, which reads films in another way"
        why = next((text for name, text in words.items() if name in differs), otherwise)
        raise UsageError(f"{output} {why}: give the same again, or another folder to --output")


def _list(found: Source, plan: Plan) -> None:
    """Adds new films to the plan."""
    before, listed = plan.films, 0
    with progress("listing", None) as show:
        for films in plan.extend(found.batches):
            listed += films
            show(listed)
    new = plan.films - before
    say(f"{listed:,} films listed" + (f", {new:,} of them new" if new < listed else ""))
    for what, count in found.passed_over.most_common():
        say(f"not listed: {count:,} {what}")


# --------------------------------------------------------------------------------------------------------- the parts


def _do_parts(client: Client, job: Job, plan: Plan, store: Store, outcome: Outcome) -> None:
    """Has all parts done, as far as that is possible, and fills in `outcome`."""
    from distributed.comm.core import CommClosedError
    from distributed.scheduler import KilledWorker

    sizes = dict(plan.sizes())
    outcome.films, outcome.parts, outcome.missing = plan.films, len(sizes), sizes.copy()
    standing = {schema.part_number(name) for name in store.names("films")}
    total = sum(films for part, films in sizes.items() if part not in standing)
    if total < plan.films:
        say(f"{plan.films - total:,} of {plan.films:,} films have been judged before")
    fatal: list[int] = []
    judged = in_a_row = 0
    try:
        with progress("judging", total) as show:
            for part, result in _results(client, job, plan):
                if isinstance(result, Done):
                    outcome.add(part, result)
                    in_a_row = 0
                elif isinstance(result, KilledWorker):
                    fatal.append(part)
                else:
                    outcome.failures.append(f"part {part}: {one_line(result)}")
                    in_a_row += 1
                if in_a_row == _IN_A_ROW:
                    break
                judged += sizes[part] * (part not in standing)
                show(judged)
        # Only now: a film that ends its process would also cast suspicion on the parts that wait beside it.
        for part, films in plan.parts() if fatal else ():
            if part in fatal:
                say(f"part {part} has ended every worker that tried it: its films are tried one by one")
                try:
                    outcome.add(part, _film_by_film(client, job, part, films))
                except _ENDS_THE_RUN:
                    raise
                except Exception as error:
                    outcome.failures.append(f"part {part}: {one_line(error)}")
        outcome.threads = _threads(client)
    except (CancelledError, CommClosedError):
        outcome.failures.append("the scheduler has gone away")


def _results(client: Client, job: Job, plan: Plan) -> Iterator[tuple[int, Done | Exception]]:
    """Yields the number and the result of each part, in the order in which they are done."""
    from distributed import as_completed

    # A name of its own for each run: Dask gives the same name the same result.
    run = uuid4().hex[:8]
    parts, handed, queue = plan.parts(), dict[str, int](), as_completed(loop=client.loop)
    while True:
        # Counted each time, since a cluster may grow and shrink.
        room = max(1, _FOR_EACH_THREAD * _threads(client)) - len(handed)
        for part, films in islice(parts, max(0, room)):
            key = f"part-{part}-{run}"
            handed[key] = part
            queue.add(client.submit(do_part, job, part, films, key=key, pure=False, retries=_RETRIES))
        if not handed:
            return
        future = next(queue)
        part = handed.pop(future.key)
        try:
            result = future.result()
        except _ENDS_THE_RUN:
            raise
        except Exception as error:
            result = error
        yield part, result


def _film_by_film(client: Client, job: Job, part: int, films: pa.Table) -> Done:
    """Does a part that has ended every worker that tried it. Only the film that is to blame gets no verdict."""
    from distributed.scheduler import KilledWorker

    records = []
    for i, path in enumerate(films["path"].to_pylist()):
        try:
            records += client.submit(judge, job, films.take([i]), pure=False, retries=_RETRIES).result()
        except KilledWorker:
            error = f"{path} ends every process that reads it: look at the file, and report it if it is a film"
            records.append(Failure(path, error).record())
    return Done(len(films), count_rows(write_part(job, part, films, records)))


def _threads(client: Client) -> int:
    return sum(client.nthreads().values())


# ------------------------------------------------------------------------------------------------------- the cluster


@contextmanager
def connect(scheduler: str | None, workers: int | None) -> Iterator[Client]:
    """Connects to a scheduler, or starts one with workers on this machine and stops them at the end.

    Raises:
        UsageError: The scheduler does not answer, or Dask's own settings cannot be read.
        PneumoError: No worker can be started here.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.comm.addressing import get_address_host_port
    except ValueError as error:
        # Settings are read at import. The rest of the message is the place where YAML gave up.
        reason = one_line(error).removesuffix(", original error message:")
        raise UsageError(f"{reason}: mend that file, or take it away") from error

    settings = {
        # A row of a wide manifest can be long; a part is no large graph.
        "distributed.admin.large-graph-warning-threshold": "1GB",
        # The profiler reads the worker's stack a hundred times a second, for a single function.
        "distributed.worker.profile.enabled": False,
        # A nanny always starts its worker again. The cluster would give up both where the worker is not back after this
        # time, because it has died again or starts slowly, and would then wait for ever.
        "distributed.deploy.lost-worker-timeout": "1000 days",
    }
    with dask.config.set(settings):
        _quiet_dask()
        if scheduler is not None:
            try:
                # Checked first: a client that fails half-way takes a minute to give up.
                get_address_host_port(scheduler)
                client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
            except (OSError, ValueError) as error:
                raise UsageError(f"the scheduler {scheduler} does not answer: {one_line(error)}") from error
            with client:
                yield client
            return
        _check_loopback()
        # The dashboard's library reads settings from the home folder when it is imported, and raises without one.
        if os.path.expanduser("~") == "~":  # noqa: PTH111 - which raises too
            os.environ["HOME"] = tempfile.gettempdir()
        with ExitStack() as running:
            with _ctrl_c_later():
                try:
                    # Only on 127.0.0.1, since the dashboard shows names of films.
                    cluster = LocalCluster(
                        n_workers=workers or usable_cores(),
                        threads_per_worker=1,
                        dashboard_address="127.0.0.1:0",
                        silence_logs=_level(),
                    )
                except (OSError, RuntimeError, TypeError, ValueError) as error:
                    raise PneumoError(
                        f"Dask cannot start workers here ({one_line(error)}): PNEUMO_DEBUG=1 shows why"
                    ) from error
                running.enter_context(cluster)
                client = running.enter_context(Client(cluster, set_as_default=False))
                client.register_plugin(_quiet_worker())
            yield client


def _check_loopback() -> None:
    """Checks that processes on this machine can talk to each other. Dask itself would give up after half a minute.

    Raises:
        PneumoError: They cannot.
    """
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=_LOOPBACK_SECONDS),
        ):
            pass
    except OSError as error:
        raise PneumoError(
            f"Dask cannot start workers here, since this machine does not reach itself at 127.0.0.1 ({error}): "
            "bring its loopback interface up (ip link set lo up), or give --scheduler"
        ) from error


@contextmanager
def _ctrl_c_later() -> Iterator[None]:
    """Puts Ctrl-C off while a cluster starts, which cannot be stopped half-way.

    Threads and processes begin with the signal mask of the thread that starts them. So those that start here, and all
    workers that the cluster starts later, never get Ctrl-C, which a terminal sends to all of them. The driver handles
    it.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # Started inside, it would lift the mask.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _level() -> int:
    """Returns the level of Dask's log. One worker that dies and is replaced fills pages of it."""
    return logging.WARNING if os.environ.get("PNEUMO_DEBUG") == "1" else logging.CRITICAL


def _quiet_dask() -> None:
    for name in ("distributed", "distributed.client", "distributed.gc", "tornado.application"):
        logging.getLogger(name).setLevel(_level())


def _quiet_worker() -> Any:
    """Returns a plugin for workers on this machine, whose output would mix with ours."""
    from distributed import WorkerPlugin

    class QuietWorker(WorkerPlugin):
        def setup(self, worker: Any) -> None:  # noqa: ARG002
            quiet_libraries()

    return QuietWorker()


def _check_workers(client: Client, job: Job) -> None:
    """Prints the dashboard's address, and lets every worker load the bundle.

    Raises:
        UsageError: A worker cannot do the job.
    """
    say(f"dashboard: {client.dashboard_link}")
    try:
        answers = client.run(check, job)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"the workers cannot run pneumo: install 'pneumo[archive]' there ({one_line(error)})"
        ) from None
    for worker, problem in answers.items():
        if problem is not None:
            raise UsageError(f"worker {worker}: {problem}")
    if not answers:
        say("the scheduler has no workers yet: waiting for the first")
