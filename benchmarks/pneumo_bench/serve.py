"""Tests pneumo-serve with real peers: counts the answers that arrive although it is killed, its clock jumps and a PACS
is stopped.

The test suite runs the same code with fewer films.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sysconfig
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

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

_FARTHEST = 400
"""Days that a clock jumps at most."""

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


class _Program(ABC):
    """A program on ports that are its own while a `with` block lasts. It runs from the beginning of the block."""

    def __init__(self) -> None:
        self._ports = ExitStack()

    @abstractmethod
    def _begin(self, new_port: Callable[[], int]) -> None:
        """Asks for its ports, and starts it."""

    @abstractmethod
    def _finish(self) -> None:
        """Ends it, if it runs."""

    def __enter__(self) -> Self:
        try:
            self._begin(lambda: self._ports.enter_context(reserved_port()))
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._ports:
            self._finish()


class Orthanc(_Program):
    """A PACS: the program Orthanc, its store in a folder. It can be stopped and started again."""

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
        super().__init__()
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
        return json.loads(self._ask(path))

    def post(self, path: str, data: bytes, method: str = "POST") -> Any:
        """Sends data to its REST interface, and returns the answer, parsed from JSON."""
        return json.loads(self._ask(path, data, method) or b"null")

    def put(self, path: str, value: Any) -> Any:
        """Sets a value at its REST interface."""
        return self.post(path, json.dumps(value).encode(), "PUT")

    def file(self, instance: str) -> bytes:
        """Returns an instance as a DICOM file."""
        return self._ask(f"instances/{instance}/file")

    def _ask(self, path: str, data: bytes | None = None, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/{path}", data, method=method)
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
            told: bytes = answer.read()
            return told

    def instances(self) -> dict[str, Counter[str]]:
        """Returns StudyInstanceUID -> modality -> number of instances."""
        # In this order: a study that comes in between is one without series, and no series is without its study.
        all_series = self.get("series?expand")
        studies = {s["ID"]: s["MainDicomTags"]["StudyInstanceUID"] for s in self.get("studies?expand")}
        found: dict[str, Counter[str]] = {uid: Counter() for uid in studies.values()}
        for series in all_series:
            found[studies[series["ParentStudy"]]][series["MainDicomTags"]["Modality"]] += len(series["Instances"])
        return found

    def _begin(self, new_port: Callable[[], int]) -> None:
        self.port, self.http = new_port(), new_port()
        ports = {"DicomPort": self.port, "HttpPort": self.http}
        self._file.write_text(json.dumps(self._settings | ports), encoding="utf-8")
        self.start()

    def _finish(self) -> None:
        self.stop()


class PicturesOnly(_Program):
    """A PACS that takes pictures and no reports, and has no C-ECHO: DCMTK's storescp."""

    ae_title = "PICTURES"

    _TAKES = """
[[TransferSyntaxes]]
[Plain]
TransferSyntax1 = LittleEndianExplicit
[[PresentationContexts]]
[Pictures]
PresentationContext1 = SecondaryCaptureImageStorage\\Plain
[[Profiles]]
[Default]
PresentationContexts = Pictures
"""

    def __init__(self, folder: Path) -> None:
        """Prepares it.

        Args:
            folder: New; gets its settings and what it stores.

        Raises:
            UsageError: storescp is not installed.
        """
        program = find_program("storescp")
        if program is None:
            raise UsageError("a PACS that takes no reports needs the program storescp: apt install dcmtk")
        super().__init__()
        self.port, self._store = 0, folder / "store"
        self._store.mkdir(parents=True)
        profile = folder / "storescp.cfg"
        profile.write_text(self._TAKES, encoding="ascii")
        takes = ["-od", str(self._store), "-xf", str(profile), "Default"]
        self._command = [program, "-aet", self.ae_title, *takes]
        self._process: subprocess.Popen[bytes] | None = None

    def count(self) -> int:
        """Returns how many objects it has stored."""
        return sum(1 for _ in self._store.iterdir())

    def instances(self) -> dict[str, Counter[str]]:
        """Returns StudyInstanceUID -> modality -> how many instances there are."""
        import pydicom

        found: dict[str, Counter[str]] = {}
        for path in self._store.iterdir():
            stored = pydicom.dcmread(path, stop_before_pixels=True)
            found.setdefault(stored.StudyInstanceUID, Counter())[stored.Modality] += 1
        return found

    def _begin(self, new_port: Callable[[], int]) -> None:
        self.port = new_port()
        line = [*self._command, str(self.port)]
        self._process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603

    def _finish(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(_PATIENCE)


_TELLS_TIME = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *off; /* seconds */

__attribute__((constructor)) static void begin(void)
{
    int file = open(getenv("PNEUMO_BENCH_CLOCK"), O_RDONLY);
    void *page = mmap(NULL, sizeof *off, PROT_READ, MAP_SHARED, file, 0);
    if (page == MAP_FAILED) abort();
    off = page;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int code = syscall(SYS_clock_gettime, clock, now);
    if (code == 0 && off && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *off;
    return code;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int code = syscall(SYS_gettimeofday, now, zone);
    if (code == 0 && now && off) now->tv_sec += *off;
    return code;
}

time_t time(time_t *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told) *told = now.tv_sec;
    return now.tv_sec;
}
"""


class JumpingClock:
    """The time of day as one process is told it; its monotonic clock goes on as it does in a machine.

    libfaketime would do, but for its `clock_nanosleep`, which fails (0.9.10) where a moment of the monotonic clock has
    passed: Python sleeps by it.
    """

    def __init__(self, folder: Path) -> None:
        """Compiles what tells the time, and sets it right.

        Args:
            folder: Gets two files.

        Raises:
            UsageError: There is no C compiler.
            PneumoError: It fails.
        """
        compiler = find_program("cc")
        if compiler is None:
            raise UsageError("a clock that jumps needs the program cc: apt install gcc libc6-dev")
        source, library, self._off = folder / "clock.c", folder / "clock.so", folder / "clock"
        source.write_text(_TELLS_TIME, encoding="ascii")
        line = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source)]
        done = subprocess.run(line, capture_output=True, text=True, check=False)  # noqa: S603
        if done.returncode != 0:
            raise PneumoError(f"cc cannot make a clock that jumps: {done.stderr.strip()}")
        self._off.write_bytes(bytes(8))
        self.environment = {"LD_PRELOAD": str(library), "PNEUMO_BENCH_CLOCK": str(self._off)}
        """What a process needs to be told this time."""

    def jump(self, days: int) -> None:
        """Sets it so many days off the right time."""
        with self._off.open("r+b") as file:
            file.write(struct.pack("=q", days * 86400))


class Service(_Program):
    """The installed command pneumo-serve. It can be killed and started again."""

    ae_title = "PNEUMO"

    def __init__(
        self,
        spool: Path,
        *options: str | Path,
        dicom: bool = True,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Prepares it.

        Args:
            spool: Its folder.
            options: Of the command.
            dicom: Whether it has a DICOM node.
            cwd: Folder that it runs in; this process's own by default.
            environment: Variables that it gets beside those of this process.

        Raises:
            MissingExtraError: The command is not installed.
        """
        command = shutil.which("pneumo-serve", path=sysconfig.get_path("scripts"))
        if command is None:
            raise MissingExtraError("pneumo", "serve", "starting pneumo-serve")
        super().__init__()
        self.port = 0
        """Of the DICOM node."""
        self.spool = spool
        self._command = [command, "--spool", str(spool), *map(str, options)]
        self._dicom, self._cwd = dicom, cwd
        self._environment = os.environ | dict(environment or {})
        self._last_line = "DICOM: " if dicom else "page and HTTP: "
        self.said: list[str] = []
        """Lines that it has printed on stderr."""
        self.address = ""
        """Address of page and HTTP interface, once it has started."""
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._ready = threading.Event()

    def start(self, patience: float | None = _PATIENCE) -> None:
        """Starts it, and waits until it takes films.

        Args:
            patience: Longest wait in seconds; None returns at once.

        Raises:
            PneumoError: It takes no films in that time.
        """
        self._ready = threading.Event()
        self._process = subprocess.Popen(  # noqa: S603
            self._command,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            cwd=self._cwd,
            env=self._environment,
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

    def _begin(self, new_port: Callable[[], int]) -> None:
        self._command += ["--port", str(new_port())]
        if self._dicom:
            self.port = new_port()
            self._command += ["--dicom-port", str(self.port)]
        self.start()

    def _finish(self) -> None:
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
    """Kills pneumo-serve, stops the PACS and sets the clock, at moments that are drawn beforehand.

    A film makes three steps: it is accepted, and its picture and its report arrive in the PACS. Kills and jumps of the
    clock come at numbers of steps, so that they are spread over all films on a machine of any speed. Some kills come
    while the PACS is stopped.
    """

    def __init__(
        self,
        service: Service,
        pacs: Orthanc,
        clock: JumpingClock,
        films: int,
        *,
        kills: int,
        away: float,
        jumps: int,
        seed: int,
    ) -> None:
        self._draw = random.Random(seed)  # noqa: S311
        self._service, self._pacs, self._clock = service, pacs, clock
        meanwhile = min(kills, max(1, kills // 5))
        self._steps = sorted(self._draw.randrange(3 * films) for _ in range(kills - meanwhile))
        self._seconds = sorted(self._draw.uniform(0, away) for _ in range(meanwhile))
        self._jumps = sorted(
            (self._draw.randrange(3 * films), self._draw.randint(-_FARTHEST, _FARTHEST)) for _ in range(jumps)
        )
        self._leaves_at, self._away = round(0.4 * films), away
        self._left: float | None = None
        self._start = time.perf_counter()
        self.pacs_is_there = True
        self.kills: list[float] = []
        """Seconds since the start."""
        self.jumps: list[int] = []
        """Days that the clock was off from then on."""

    @property
    def done(self) -> bool:
        """Whether all kills and jumps are done and the PACS is back."""
        drawn = self._steps or self._seconds or self._jumps
        return not drawn and self._left is not None and self.pacs_is_there

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
        if self._jumps and accepted + arrived >= self._jumps[0][0]:
            _, days = self._jumps.pop(0)
            self._clock.jump(days)
            self.jumps.append(days)
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
    jumps: int,
    associations: int,
    seed: int,
    bundle: Path | None = None,
) -> dict[str, Any]:
    """Sends films from several senders while pneumo-serve is killed again and again, its clock jumps and the PACS is
    stopped; another PACS takes no reports. Films are kept for 30 days, fewer than the clock jumps.

    Args:
        folder: New folder for the spool and the stores of both.
        films: DICOM files from `dicom_film`, each with its own study.
        kills: Times that `kill -9` ends pneumo-serve, at random moments.
        away: Seconds without Orthanc; longer if the kills of that time are not done.
        jumps: Times that the clock is set, up to 400 days off in either direction.
        associations: Senders that send bursts at the same time, and send again what was not accepted.
        seed: Seed of the moments.
        bundle: The model; the one that comes with pneumo by default.

    Returns:
        Numbers of films that were sent and that are kept; for each destination those that were answered as it takes
        them (one object of each kind under the study of the film), lost, and answered more than once.

    Raises:
        UsageError, MissingExtraError: Orthanc, storescp, a C compiler or pneumo-serve is not there.
        PneumoError: One of them does not start.
    """
    start, outbox = time.perf_counter(), _Outbox(films)
    options = [] if bundle is None else ["--model", str(bundle)]
    with Orthanc(folder / "pacs") as pacs, PicturesOnly(folder / "pictures") as pictures:
        for each in (pacs, pictures):
            options += ["--send-to", f"{each.ae_title}@127.0.0.1:{each.port}"]
        clock = JumpingClock(folder)
        with Service(folder / "spool", "--keep-days", "30", *options, environment=clock.environment) as service:
            fate = _Fate(service, pacs, clock, len(films), kills=kills, away=away, jumps=jumps, seed=seed)
            senders = [threading.Thread(target=_send_bursts, args=(outbox, service.port)) for _ in range(associations)]
            for sender in senders:
                sender.start()
            try:
                with progress("answering", 3 * len(films)) as show:
                    arrived, shown, changed = 0, 0, time.monotonic()
                    while not (shown >= 3 * len(films) and fate.done):
                        if fate.pacs_is_there:
                            arrived = max(arrived, pacs.get("statistics")["CountInstances"])
                        if arrived + pictures.count() > shown:
                            shown, changed = arrived + pictures.count(), time.monotonic()
                            show(shown)
                        if time.monotonic() - changed > away + _PATIENCE:
                            break
                        fate.strike(outbox.accepted, arrived)
                        time.sleep(0.1)
            finally:
                outbox.closed.set()
                for sender in senders:
                    sender.join()
            code = service.stop()
        both = {"Orthanc": (pacs.instances(), {"OT": 1, "SR": 1}), "storescp": (pictures.instances(), {"OT": 1})}
        days = {line[:10] for line in service.said if re.match(r"\d{4}-\d\d-\d\d \d\d:", line)}
    with closing(sqlite3.connect(folder / "spool" / "journal.db")) as journal:
        (kept,) = journal.execute("SELECT count(*) FROM films WHERE state = 'sent'").fetchone()
        (refused,) = journal.execute("SELECT count(*) FROM sendings WHERE state = 'refused'").fetchone()
    return {
        "films": len(films),
        "accepted": outbox.accepted,
        "kept": kept,
        "reports_refused": refused,
        "destinations": {
            name: {
                "gets": sorted(expected),
                "answered": sum(counts == expected for counts in found.values()),
                "lost": len(films) - len(found),
                "twice": sum(max(counts.values(), default=0) > 1 for counts in found.values()),
                "objects": sum(counts.total() for counts in found.values()),
            }
            for name, (found, expected) in both.items()
        },
        "kills": fate.kills,
        "pacs_away_seconds": away,
        "jumps_days": fate.jumps,
        "days_in_log": len(days),
        "exit_code": code,
        "seconds": round(time.perf_counter() - start, 1),
    }


def is_whole(found: Mapping[str, Any]) -> bool:
    """Tells whether what `survive` returned is as it should be: every film answered once by each, and kept."""
    films = found["films"]
    return (
        found["accepted"] == found["kept"] == found["reports_refused"] == films
        and found["exit_code"] == 0
        and all(
            (each["answered"], each["lost"], each["twice"], each["objects"]) == (films, 0, 0, films * len(each["gets"]))
            for each in found["destinations"].values()
        )
    )


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
    *, films: int, kills: int, away: float, jumps: int, associations: int, seed: int, bundle: Path | None
) -> dict[str, Any]:
    """Makes DICOM films of phantoms, lets `survive` send them, and returns the content of `serve.json`.

    Raises:
        UsageError, MissingExtraError, PneumoError: See `survive`.
    """
    watch = Watch()
    with TemporaryDirectory(prefix="pneumo-bench-") as scratch, sample_films(None, min(films, 40)) as (phantoms, _):
        grey = [np.asarray(Image.open(path).convert("L")) for path in phantoms]
        drawn = [dicom_film(grey[i % len(grey)], i) for i in range(films)]
        result = survive(
            Path(scratch) / "run",
            drawn,
            kills=kills,
            away=away,
            jumps=jumps,
            associations=associations,
            seed=seed,
            bundle=bundle,
        )
    settings = {"films": PHANTOMS, "associations": associations, "burst": _BURST, "seed": seed, "keep_days": 30}
    return header("serve", describe_machine(SERVE_PACKAGES), watch.finish()) | {"settings": settings, "crashes": result}


_OBJECTS = {"OT": "picture", "SR": "report"}


def crash_table(record: dict[str, Any]) -> Table:
    """Returns the table of a record of `measure_crashes`, one row for each destination."""
    found, settings = record["crashes"], record["settings"]
    return Table(
        title="pneumo-serve, killed and started again",
        columns=("destination", "takes", "films accepted", "answered there", "lost", "answered twice"),
        rows=[
            (
                name,
                " and ".join(_OBJECTS[modality] for modality in there["gets"]),
                str(found["accepted"]),
                str(there["answered"]),
                str(there["lost"]),
                str(there["twice"]),
            )
            for name, there in found["destinations"].items()
        ],
        notes=(
            f"{settings['films']}, in bursts of {settings['burst']} from {settings['associations']} associations at the"
            f" same time; {len(found['kills'])} kill -9, and {len(found['jumps_days'])} jumps of the clock by up to"
            f" {_FARTHEST} days, at moments drawn with seed {settings['seed']}; Orthanc away for"
            f" {found['pacs_away_seconds']:.0f} s; storescp takes no reports; {found['seconds']:.0f} s in all",
            "answered: one object of each kind that it takes under the study of the film, counted in its store",
            f"{found['reports_refused']} reports for storescp stand in the journal as refused, with the reason;"
            f" {found['kept']} films are kept, with --keep-days {settings['keep_days']}; the log has lines of"
            f" {found['days_in_log']} different days",
            *machine_notes(record["machine"], record["load"]),
        ),
    )
