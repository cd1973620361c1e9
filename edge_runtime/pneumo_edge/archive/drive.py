"""The driver: lists the films, hands out the parts, and collects counts, never rows."""

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
from pneumo_edge.command_line import NOT_A_DIAGNOSIS, progress, quiet_libraries, say
from pneumo_edge.errors import BundleError, DataError, MissingExtraError, PneumoError, UsageError, one_line
from pneumo_edge.preprocess import VERSION as PREPROCESS_VERSION
from pneumo_edge.watch import expected_share

if TYPE_CHECKING:
    import pyarrow as pa
    from distributed import Client

BATCH = 500
"""Films in one part: some ten seconds of one core, which is what a worker that dies takes with it."""

_FOR_EACH_THREAD = 2
"""Parts handed out at one time: one that is judged and one that waits. More would only fill memory."""

_RETRIES = 2
"""Of a part that failed by itself, such as when a store did not answer."""

_IN_A_ROW = 10
"""Parts that have failed one after the other: then it is not the parts."""

_ENDS_THE_RUN = (CancelledError, BundleError, MissingExtraError, UsageError)
"""The scheduler has gone away; or a worker cannot do the job, and no part would fare better there."""

_LOOPBACK_SECONDS = 5
"""For a connection that never leaves the machine."""

_PATIENCE = "30s"
"""For the scheduler to answer."""


@dataclass
class Outcome:
    """What came of a run."""

    description: Description
    threshold: float
    """Of the bundle's operating point, on the probability."""
    started: str
    reference: Reference | None = None
    """Of the file that judges: what its answers are compared with."""
    expected: float = 0.0
    """Share of PNEUMONIA in the reference."""
    counts: Counts = field(default_factory=Counts)
    """Of all parts that stand, whichever run made them."""
    films: int = 0
    """In the plan."""
    parts: int = 0
    missing: dict[int, int] = field(default_factory=dict)
    """Parts that do not stand -> their films."""
    failures: list[str] = field(default_factory=list)
    """Why not, one sentence for each that was tried."""
    unlisted: int = 0
    """Folders that could not be searched."""
    judged: int = 0
    """Films, in this run."""
    listing_seconds: float = 0.0
    seconds: float = 0.0
    """From the first part to the last."""
    driver_seconds: float = 0.0
    """Of a processor that this process, and a scheduler on this machine, took meanwhile."""
    threads: int = 0
    """Of all workers, at the end."""

    def add(self, part: int, done: Done) -> None:
        """Takes in a part that stands."""
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
        where: Protocol of a manifest's paths that have none of their own.

    Raises:
        BundleError, DataError, MissingExtraError, UsageError: One sentence each; parts that stand are kept.
    """
    started = datetime.now(UTC).isoformat(timespec="seconds")
    store = Store(output)
    with _usable(store):
        known = read_description(store)
    with Classifier.load(model, threads=1) as classifier:
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
    outcome = Outcome(known or description, chosen.threshold, started, bundle.description.files[file].reference)
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
    """Says of a disk that cannot hold an output what is to be done about it."""
    try:
        yield
    except OSError as error:
        why = error.strerror or one_line(error)
        raise UsageError(f"{store.url} cannot hold the output ({why}): give another folder to --output") from error


def _compare(wanted: Description, known: Description, output: str) -> None:
    """Makes sure that a dataset is continued as it was begun.

    Raises:
        UsageError: It would not be.
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
    """Has every part done that can be, and fills in `outcome`."""
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
        # Only now: a film that ends processes would also bring what waits beside it under suspicion.
        for part, films in plan.parts() if fatal else ():
            if part in fatal:
                say(f"part {part} has ended every worker that tried it: its films one by one")
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
    """Yields each part, in the order in which they are done, with what came of it."""
    from distributed import as_completed

    # A name of its own for each run: Dask gives the same name the same result.
    run = uuid4().hex[:8]
    parts, handed, queue = plan.parts(), dict[str, int](), as_completed(loop=client.loop)
    while True:
        # Asked anew each time: a cluster may grow and shrink.
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
    """Does a part that has ended every worker that tried it: the film that is to blame costs its row alone."""
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
    """Connects to a scheduler, or starts one with workers on this machine and takes them down at the end.

    Raises:
        UsageError: The scheduler does not answer, or Dask's own settings cannot be read.
        PneumoError: No worker can be started here.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
        from distributed.comm.addressing import get_address_host_port
    except ValueError as error:
        # Settings are read at import; the rest of what it says is where YAML gave up.
        reason = one_line(error).removesuffix(", original error message:")
        raise UsageError(f"{reason}: mend that file, or take it away") from error

    settings = {
        # A row of a wide manifest can be long; a part is no large graph.
        "distributed.admin.large-graph-warning-threshold": "1GB",
        # It looks at the worker's stack a hundred times a second, and there is one function to be seen there.
        "distributed.worker.profile.enabled": False,
        # A nanny starts its worker anew whatever it takes. The cluster would give up both if the worker were not there
        # exactly so long after a death, because it has died again or starts slowly; and then wait for ever.
        "distributed.deploy.lost-worker-timeout": "1000 days",
    }
    with dask.config.set(settings):
        _quiet_dask()
        if scheduler is not None:
            try:
                # Asked first: a client that fails half-way takes a minute to give up.
                get_address_host_port(scheduler)
                client = Client(scheduler, timeout=_PATIENCE, set_as_default=False)
            except (OSError, ValueError) as error:
                raise UsageError(f"the scheduler {scheduler} does not answer: {one_line(error)}") from error
            with client:
                yield client
            return
        _check_loopback()
        # The dashboard's library looks for settings there when it is imported, and raises where there is no home.
        if os.path.expanduser("~") == "~":  # noqa: PTH111 - which raises too
            os.environ["HOME"] = tempfile.gettempdir()
        with ExitStack() as running:
            with _ctrl_c_later():
                try:
                    # On 127.0.0.1 alone: the dashboard shows names of films.
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
    """Makes sure that processes of this machine can talk to each other: Dask would find out after half a minute.

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
    """Puts Ctrl-C off while a cluster starts, which cannot be taken down half-way.

    Threads and processes begin with the mask of the thread that starts them: what starts here, and all workers that the
    cluster starts later, never see Ctrl-C. It is the driver's business, and a terminal sends it to all of them.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    # It would lift the mask in the thread that starts it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _level() -> int:
    """Of Dask's log: a worker that dies and is replaced fills pages with it, and is none of the user's business."""
    return logging.WARNING if os.environ.get("PNEUMO_DEBUG") == "1" else logging.CRITICAL


def _quiet_dask() -> None:
    for name in ("distributed", "distributed.client", "distributed.gc", "tornado.application"):
        logging.getLogger(name).setLevel(_level())


def _quiet_worker() -> Any:
    """Returns a plugin for workers that are ours alone, and so print among our own lines."""
    from distributed import WorkerPlugin

    class QuietWorker(WorkerPlugin):
        def setup(self, worker: Any) -> None:  # noqa: ARG002
            quiet_libraries()

    return QuietWorker()


def _check_workers(client: Client, job: Job) -> None:
    """Prints the dashboard's address, and has every worker load the bundle.

    Raises:
        UsageError: One of them cannot do the job.
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
