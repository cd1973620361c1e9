"""Tests pneumo-serve with real peers: counts the answers that arrive although it is killed and the PACS is stopped.

The test suite runs the same code with fewer films.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sysconfig
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_bench.inputs import PHANTOMS, sample_films
from pneumo_bench.machine import PACKAGES, Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_edge.command_line import progress
from pneumo_edge.errors import MissingExtraError, PneumoError, UsageError

SERVE_PACKAGES = (*PACKAGES, "pydicom", "pynetdicom", "highdicom", "fastapi", "uvicorn")

_BURST = 10
"""Films that a sender sends in one association."""

_PATIENCE = 600.0
"""Seconds that a program may take to start or to end. It is also the time without a new answer in the PACS after which
the others count as lost; the time without a PACS comes on top, since sending is tried again after as long at most."""


# ---------------------------------------------------------------------------------------------------- films and peers


def dicom_film(pixels: npt.NDArray[np.uint8], number: int, **tags: Any) -> bytes:
    """Returns a DICOM file (DX, for presentation, explicit little endian) of a patient and study of its own.

    Args:
        pixels: (H, W), 0 = black.
        number: Number of the film, from which its UIDs follow.
        tags: Elements to add or replace; None removes one.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    def uid(of: str) -> str:
        return generate_uid(entropy_srcs=[of, str(number)])

    film = Dataset()
    film.SOPClassUID = DigitalXRayImageStorageForPresentation
    film.SOPInstanceUID, film.StudyInstanceUID, film.SeriesInstanceUID = uid("film"), uid("study"), uid("series")
    film.PatientName, film.PatientID = f"Phantom^{number}", f"PHANTOM-{number}"
    film.PatientBirthDate, film.PatientSex = "20210305", "O"
    film.StudyDate, film.StudyTime, film.StudyID, film.AccessionNumber = "20250102", "030405", str(number), f"A{number}"
    film.ReferringPhysicianName = ""
    film.Modality, film.SeriesNumber, film.InstanceNumber = "DX", 1, 1
    film.BodyPartExamined, film.ViewPosition, film.PatientOrientation = "CHEST", "PA", ["L", "F"]
    film.ImageType, film.PresentationIntentType = ["ORIGINAL", "PRIMARY"], "FOR PRESENTATION"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = pixels.shape
    film.BitsAllocated, film.BitsStored, film.HighBit, film.PixelRepresentation = 8, 8, 7, 0
    film.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    for name, value in tags.items():
        if value is None:
            del film[name]
        else:
            setattr(film, name, value)
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    film.save_as(file, enforce_file_format=True)
    return file.getvalue()


def find_program(name: str) -> str | None:
    """Returns the path of a program. The system's come first: pynetdicom has scripts of the same names."""
    return shutil.which(name, path=os.pathsep.join(["/usr/bin", "/usr/sbin", os.environ.get("PATH", os.defpath)]))


@contextmanager
def reserved_port() -> Iterator[int]:
    """Keeps a port of 127.0.0.1 for a program that has to be told its number, while the block lasts.

    Linux gives a port that is bound to nobody who asks for any, but lets a server with SO_REUSEADDR, as each of those
    here is, listen on it; until one does, whoever calls is refused.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holder.bind(("127.0.0.1", 0))
        yield holder.getsockname()[1]


class Orthanc:
    """A PACS: the program Orthanc, its store in a folder, on ports that are its own while a `with` block lasts. It runs
    from the beginning of the block, and can be stopped and started again."""

    ae_title = "PACS"

    def __init__(self, folder: Path, plugin: Path | None = None) -> None:
        """Prepares it.

        Args:
            folder: New folder for its settings and its store.
            plugin: A shared library to load, such as that of DICOMweb.

        Raises:
            UsageError: Orthanc is not installed.
        """
        program = find_program("Orthanc")
        if program is None:
            raise UsageError("a PACS to send to needs the program Orthanc: apt install orthanc")
        self.port = self.http = 0
        """Of DICOM, and of its REST interface."""
        folder.mkdir(parents=True)
        self._file = folder / "orthanc.json"
        self._command = [program, str(self._file)]
        self._log = folder / "orthanc.log"
        self._settings = {
            "Name": "PACS of a test",
            "DicomAet": self.ae_title,
            "DicomCheckCalledAet": True,
            "DicomAlwaysAllowStore": True,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "StorageDirectory": str(folder / "store"),
            "IndexDirectory": str(folder / "store"),
            "OverwriteInstances": False,
            "Plugins": [] if plugin is None else [str(plugin)],
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = ExitStack()

    def start(self) -> None:
        """Starts it, and returns when it answers.

        Raises:
            PneumoError: It ends, or does not answer in time.
        """
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)  # noqa: S603
        deadline = time.monotonic() + _PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            with suppress(OSError):
                self.get("system")
                return
            time.sleep(0.1)
        raise PneumoError(f"Orthanc does not start: {self._log} says why")

    def stop(self) -> None:
        """Stops it in good order. Its store stays."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(_PATIENCE)
            self._process = None

    def get(self, path: str) -> Any:
        """Returns the answer of its REST interface, parsed from JSON."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/{path}", timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, data: bytes, method: str = "POST") -> Any:
        """Sends data to its REST interface, and returns the answer, parsed from JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")

    def put(self, path: str, value: Any) -> Any:
        """Sets a value at its REST interface."""
        return self.post(path, json.dumps(value).encode(), "PUT")

    def file(self, instance: str) -> bytes:
        """Returns an instance as a DICOM file."""
        url = f"http://127.0.0.1:{self.http}/instances/{instance}/file"
        with urllib.request.urlopen(url, timeout=60) as answer:
            data: bytes = answer.read()
            return data

    def instances(self) -> dict[str, Counter[str]]:
        """Returns StudyInstanceUID -> modality -> number of instances."""
        studies = {s["ID"]: s["MainDicomTags"]["StudyInstanceUID"] for s in self.get("studies?expand")}
        found: dict[str, Counter[str]] = {uid: Counter() for uid in studies.values()}
        for series in self.get("series?expand"):
            found[studies[series["ParentStudy"]]][series["MainDicomTags"]["Modality"]] += len(series["Instances"])
        return found

    def __enter__(self) -> Orthanc:
        self.port, self.http = (self._ports.enter_context(reserved_port()) for _ in range(2))
        ports = {"DicomPort": self.port, "HttpPort": self.http}
        self._file.write_text(json.dumps(self._settings | ports), encoding="utf-8")
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._ports:
            self.stop()


class Service:
    """The installed command pneumo-serve, on ports that are its own while a `with` block lasts. It runs from the
    beginning of the block, and can be killed and started again."""

    ae_title = "PNEUMO"

    def __init__(self, spool: Path, *options: str | Path, dicom: bool = True, cwd: Path | None = None) -> None:
        """Prepares it.

        Args:
            spool: Its folder.
            options: Of the command.
            dicom: Whether it has a DICOM node.
            cwd: Folder that it runs in; this process's own by default.

        Raises:
            MissingExtraError: The command is not installed.
        """
        command = shutil.which("pneumo-serve", path=sysconfig.get_path("scripts"))
        if command is None:
            raise MissingExtraError("pneumo", "serve", "starting pneumo-serve")
        self.port = 0
        """Of the DICOM node."""
        self.spool = spool
        self._command = [command, "--spool", str(spool), *map(str, options)]
        self._dicom, self._cwd = dicom, cwd
        self._last_line = "DICOM: " if dicom else "page and HTTP: "
        self.said: list[str] = []
        """Lines that it has printed on stderr."""
        self.address = ""
        """Address of page and HTTP interface, once it has started."""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()
        self._ports = ExitStack()

    def start(self, patience: float | None = _PATIENCE) -> None:
        """Starts it, and waits until it takes films.

        Args:
            patience: Longest wait in seconds; None returns at once.

        Raises:
            PneumoError: It takes no films in that time.
        """
        self._ready = threading.Event()
        self._process = subprocess.Popen(  # noqa: S603
            self._command, stderr=subprocess.PIPE, text=True, encoding="utf-8", cwd=self._cwd
        )
        self._reader = threading.Thread(target=self._listen, args=(self._process, self._ready))
        self._reader.start()
        if patience is not None and not (self._ready.wait(patience) and self._process.poll() is None):
            self.kill()
            raise PneumoError(f"pneumo-serve does not start: {' / '.join(self.said[-3:])}")

    @property
    def log(self) -> str:
        """All that it has printed on stderr."""
        return "\n".join(self.said)

    @property
    def pid(self) -> int:
        """Number of the process; 0 where none runs."""
        return 0 if self._process is None else self._process.pid

    def kill(self) -> None:
        """Kills it, as kill -9 does."""
        self._end(signal.SIGKILL)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Stops it in good order, and returns its exit code."""
        return self._end(number)

    def _end(self, number: int) -> int:
        if self._process is None or self._reader is None:
            return 0
        self._process.send_signal(number)
        code = self._process.wait(_PATIENCE)
        self._reader.join()
        self._process = None
        return code

    def _listen(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        if process.stderr is not None:
            with process.stderr as lines:
                for line in lines:
                    self.said.append(line.rstrip())
                    if line.startswith("page and HTTP: "):
                        self.address = line.rstrip().removeprefix("page and HTTP: ")
                    if line.startswith(self._last_line):
                        ready.set()
        # It has ended: nobody need wait any longer.
        ready.set()

    def __enter__(self) -> Service:
        self._command += ["--port", str(self._ports.enter_context(reserved_port()))]
        if self._dicom:
            self.port = self._ports.enter_context(reserved_port())
            self._command += ["--dicom-port", str(self.port)]
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._ports:
            if self._process is not None:
                self.kill()


# ---------------------------------------------------------------------------------------- kill -9, and a PACS that goes


class _Outbox:
    """Films that the senders have to send. Each stays until it is accepted."""

    def __init__(self, films: Sequence[bytes]) -> None:
        self._waiting = list(films)
        self._lock = threading.Lock()
        self.total, self.accepted = len(films), 0
        self.closed = threading.Event()

    def take(self) -> list[bytes]:
        with self._lock:
            burst, self._waiting = self._waiting[:_BURST], self._waiting[_BURST:]
            return burst

    def give_back(self, films: Sequence[bytes]) -> None:
        with self._lock:
            self._waiting.extend(films)

    def accept(self) -> None:
        with self._lock:
            self.accepted += 1

    @property
    def done(self) -> bool:
        return self.closed.is_set() or self.accepted == self.total


class _Fate:
    """Kills pneumo-serve and stops the PACS, at moments that are drawn beforehand.

    A film makes three steps: it is accepted, and its picture and its report arrive. Kills come at numbers of steps, so
    that they are spread over all films on a machine of any speed. Some come while the PACS is stopped.
    """

    def __init__(self, service: Service, pacs: Orthanc, films: int, kills: int, away: float, seed: int) -> None:
        self._draw = random.Random(seed)  # noqa: S311
        self._service, self._pacs = service, pacs
        meanwhile = min(kills, max(1, kills // 5))
        self._steps = sorted(self._draw.randrange(3 * films) for _ in range(kills - meanwhile))
        self._seconds = sorted(self._draw.uniform(0, away) for _ in range(meanwhile))
        self._leaves_at, self._away = round(0.4 * films), away
        self._left: float | None = None
        self._start = time.perf_counter()
        self.pacs_is_there = True
        self.kills: list[float] = []
        """Seconds since the start."""

    @property
    def done(self) -> bool:
        """Whether all kills are done and the PACS is back."""
        return not self._steps and not self._seconds and self._left is not None and self.pacs_is_there

    def strike(self, accepted: int, arrived: int) -> None:
        """Does what is due, by the number of accepted films and of objects that have arrived in the PACS."""
        now = time.perf_counter()
        if self._left is None and arrived >= self._leaves_at:
            self._pacs.stop()
            self._left, self.pacs_is_there = now, False
        if self._left is not None and not self.pacs_is_there:
            if self._seconds and now - self._left >= self._seconds[0]:
                self._seconds.pop(0)
                self._kill()
            elif now - self._left >= self._away and not self._seconds:
                self._pacs.start()
                self.pacs_is_there = True
        if self._steps and accepted + arrived >= self._steps[0]:
            self._steps.pop(0)
            time.sleep(self._draw.random())
            self._kill()

    def _kill(self) -> None:
        self._service.kill()
        self.kills.append(round(time.perf_counter() - self._start, 1))
        # The next kill may come while it still starts.
        self._service.start(patience=None if self._draw.random() < 0.25 else _PATIENCE)


def survive(
    folder: Path,
    films: Sequence[bytes],
    *,
    kills: int,
    away: float,
    associations: int,
    seed: int,
    bundle: Path | None = None,
) -> dict[str, Any]:
    """Sends films from several senders while pneumo-serve is killed again and again and the PACS is stopped.

    Args:
        folder: New folder for the spool and the store of the PACS.
        films: DICOM files from `dicom_film`, each with its own study.
        kills: Times that `kill -9` ends pneumo-serve, at random moments.
        away: Seconds without a PACS; longer if the kills of that time are not done.
        associations: Senders that send bursts at the same time, and send again what was not accepted.
        seed: Seed of the moments.
        bundle: The model; the one that comes with pneumo by default.

    Returns:
        Numbers of films that were sent, answered in the PACS (one picture and one report under the study of the film),
        lost, and answered more than once.

    Raises:
        UsageError, MissingExtraError: Orthanc or pneumo-serve is not there.
        PneumoError: One of them does not start.
    """
    start, outbox = time.perf_counter(), _Outbox(films)
    options = [] if bundle is None else ["--model", str(bundle)]
    with Orthanc(folder / "pacs") as pacs:
        with Service(folder / "spool", "--send-to", f"{pacs.ae_title}@127.0.0.1:{pacs.port}", *options) as service:
            fate = _Fate(service, pacs, len(films), kills, away, seed)
            senders = [threading.Thread(target=_send_bursts, args=(outbox, service.port)) for _ in range(associations)]
            for sender in senders:
                sender.start()
            try:
                with progress("answering", 2 * len(films)) as show:
                    arrived, changed = 0, time.monotonic()
                    while not (arrived >= 2 * len(films) and fate.done):
                        if fate.pacs_is_there:
                            now = pacs.get("statistics")["CountInstances"]
                            if now > arrived:
                                arrived, changed = now, time.monotonic()
                            show(arrived)
                        if time.monotonic() - changed > away + _PATIENCE:
                            break
                        fate.strike(outbox.accepted, arrived)
                        time.sleep(0.1)
            finally:
                outbox.closed.set()
                for sender in senders:
                    sender.join()
            code = service.stop()
        found = pacs.instances()
    return {
        "films": len(films),
        "accepted": outbox.accepted,
        "answered": sum(counts == {"OT": 1, "SR": 1} for counts in found.values()),
        "lost": len(films) - len(found),
        "twice": sum(max(counts.values(), default=0) > 1 for counts in found.values()),
        "objects": sum(sum(counts.values()) for counts in found.values()),
        "kills": fate.kills,
        "pacs_away_seconds": away,
        "exit_code": code,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _send_bursts(outbox: _Outbox, port: int) -> None:
    """Sends bursts of films until all are accepted; sends again those that were not."""
    import pydicom
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian
    from pynetdicom import AE

    entity = AE("MODALITY")
    entity.add_requested_context(DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian)
    entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 30
    while not outbox.done:
        burst = outbox.take()
        association = entity.associate("127.0.0.1", port, ae_title=Service.ae_title) if burst else None
        while burst and association is not None and association.is_established:
            try:
                status = association.send_c_store(pydicom.dcmread(io.BytesIO(burst[0]))).get("Status")
            except (RuntimeError, ValueError):
                break
            if status != 0x0000:
                break
            outbox.accept()
            burst.pop(0)
        if association is not None and association.is_established:
            association.release()
        outbox.give_back(burst)
        if burst or not association:
            outbox.closed.wait(0.5)


def measure_crashes(
    *, films: int, kills: int, away: float, associations: int, seed: int, bundle: Path | None
) -> dict[str, Any]:
    """Makes DICOM films of phantoms, lets `survive` send them, and returns the content of `serve.json`.

    Raises:
        UsageError, MissingExtraError, PneumoError: See `survive`.
    """
    watch = Watch()
    with TemporaryDirectory(prefix="pneumo-bench-") as scratch, sample_films(None, min(films, 40)) as (phantoms, _):
        grey = [np.asarray(Image.open(path).convert("L")) for path in phantoms]
        drawn = [dicom_film(grey[i % len(grey)], i) for i in range(films)]
        run = Path(scratch) / "run"
        result = survive(run, drawn, kills=kills, away=away, associations=associations, seed=seed, bundle=bundle)
    settings = {"films": PHANTOMS, "associations": associations, "burst": _BURST, "seed": seed}
    return header("serve", describe_machine(SERVE_PACKAGES), watch.finish()) | {"settings": settings, "crashes": result}


def crash_table(record: dict[str, Any]) -> Table:
    """Returns the table of a record of `measure_crashes`."""
    found, settings = record["crashes"], record["settings"]
    return Table(
        title="pneumo-serve, killed and started again",
        columns=("films", "accepted", "answered in the PACS", "lost", "answered twice", "kill -9", "PACS away", "time"),
        rows=[
            (
                str(found["films"]),
                str(found["accepted"]),
                str(found["answered"]),
                str(found["lost"]),
                str(found["twice"]),
                str(len(found["kills"])),
                f"{found['pacs_away_seconds']:.0f} s",
                f"{found['seconds']:.0f} s",
            )
        ],
        notes=(
            f"{settings['films']}, in bursts of {settings['burst']} from {settings['associations']} associations at the"
            f" same time, to Orthanc; moments of the kills drawn with seed {settings['seed']}",
            "answered: one Secondary Capture and one structured report under the study of the film, counted in Orthanc",
            *machine_notes(record["machine"], record["load"]),
        ),
    )
