"""The DICOM half of pneumo-serve, part by part, with pynetdicom as the modality and as the PACS."""

from __future__ import annotations

import io
import json
import logging
import os
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="needs the extra serve")
pytest.importorskip("pynetdicom", reason="needs the extra serve")
pytest.importorskip("highdicom", reason="needs the extra serve")

from pydicom import uid  # noqa: E402
from pydicom.config import RAISE  # noqa: E402
from pydicom.dataset import Dataset  # noqa: E402
from pydicom.valuerep import validate_value  # noqa: E402
from pynetdicom import AE, build_context, evt  # noqa: E402
from pynetdicom.association import Association  # noqa: E402
from pynetdicom.dimse_primitives import C_STORE  # noqa: E402

from places import ROOT  # noqa: E402
from pneumo_bench.serve import Service, dicom_film, find_program  # noqa: E402
from pneumo_edge.classifier import Classifier, Failure, Prediction  # noqa: E402
from pneumo_edge.command_line import NOT_A_DIAGNOSIS  # noqa: E402
from pneumo_edge.dicom.decode import TRANSFER_SYNTAXES  # noqa: E402
from pneumo_edge.errors import PassingError, UsageError  # noqa: E402
from pneumo_edge.overlay import screen_film  # noqa: E402
from pneumo_edge.serve import stow  # noqa: E402
from pneumo_edge.serve.answers import REPORTS, Answer, as_form  # noqa: E402
from pneumo_edge.serve.film import OF_THE_PIXELS, WHOSE, read_header  # noqa: E402
from pneumo_edge.serve.inbox import Inbox, Limits  # noqa: E402
from pneumo_edge.serve.journal import Entry, Journal, State  # noqa: E402
from pneumo_edge.serve.judge import Judge  # noqa: E402
from pneumo_edge.serve.node import Node  # noqa: E402
from pneumo_edge.serve.peers import Destination, Peer, make_link, parse_destination, parse_peer  # noqa: E402
from pneumo_edge.serve.sender import Sender  # noqa: E402
from pneumo_edge.serve.spool import ANSWER, CAPTURE, FILM, HEATMAP, PICTURE, REPORT, Spool, key_of_instance  # noqa: E402
from pneumo_edge.serve.stow import Server  # noqa: E402
from pneumo_edge.words import Words  # noqa: E402

pytestmark = [
    # pynetdicom leaves a socket that was never connected to the garbage collector, which comes before a test has ended.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]


DX = uid.DigitalXRayImageStorageForPresentation
KINDS = (
    uid.ComputedRadiographyImageStorage,
    DX,
    uid.DigitalXRayImageStorageForProcessing,
    uid.SecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleByteSecondaryCaptureImageStorage,
    uid.MultiFrameGrayscaleWordSecondaryCaptureImageStorage,
)
SECRETS = ("Phantom^7", "PHANTOM-7", "20210305", "A7")
DEVICE = "2.25.7"
TO = {"PACS": ("sc", "sr")}


@pytest.fixture
def journal(spool: Spool) -> Iterator[Journal]:
    opened = Journal(spool.journal)
    yield opened
    opened.close()


@pytest.fixture
def inbox(journal: Journal, spool: Spool) -> Inbox:
    """One that leaves no room on the disk."""
    return Inbox(journal, spool, Limits(room=0))


@pytest.fixture
def node(journal: Journal, spool: Spool) -> Iterator[Callable[..., Node]]:
    """Starts a node that is stopped after the test."""
    started = []

    def start(allow: tuple[str, ...] = (), tls: Any = None, **limits: Any) -> Node:
        inbox = Inbox(journal, spool, Limits(**({"room": 0} | limits)))
        made = Node(inbox, ae_title="PNEUMO", host="127.0.0.1", port=0, allow=allow, tls=tls)
        made.start()
        started.append(made)
        return made

    yield start
    for made in started:
        made.stop()


@pytest.fixture(scope="module")
def classifier(bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(bundle) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def prediction(classifier: Classifier) -> Prediction:
    """Of a phantom of two halves."""
    row = np.array([80, 200], np.uint8).repeat(80)
    file = io.BytesIO()
    Image.fromarray(row[np.newaxis].repeat(120, axis=0)).save(file, format="PNG")
    return classifier.predict(file.getvalue())


@pytest.fixture
def judge(classifier: Classifier, inbox: Inbox) -> Iterator[Judge]:
    """A judge that has been started."""
    made = Judge(classifier, inbox, send=TO)
    made.start()
    yield made
    made.stop()


@pytest.fixture
def film(pixels: npt.NDArray[np.uint8]) -> bytes:
    return dicom_film(pixels, 7)


def dataset(film: bytes) -> Dataset:
    read: Dataset = pydicom.dcmread(io.BytesIO(film))
    return read


def uid_of(film: bytes) -> str:
    return str(dataset(film).SOPInstanceUID)


def call(
    port: int,
    called: str = "PNEUMO",
    calling: str = "MODALITY",
    kind: str = DX,
    syntax: str = uid.ExplicitVRLittleEndian,
) -> Any:
    """Returns an association, established or not."""
    entity = AE(calling)
    entity.add_requested_context(kind, syntax)
    entity.add_requested_context("1.2.840.10008.1.1")
    return entity.associate("127.0.0.1", port, ae_title=called)


def store(port: int, *films: bytes) -> list[int | None]:
    """Sends films over one association and returns their statuses; None where there was no answer."""
    first = dataset(films[0])
    association = call(port, kind=first.SOPClassUID, syntax=first.file_meta.TransferSyntaxUID)
    assert association.is_established
    found = [association.send_c_store(dataset(film)).get("Status") for film in films]
    association.release()
    return found


def store_raw(port: int, instance: str, data: bytes) -> Any:
    """Sends bytes that need not be a data set, and returns the answer."""
    association = call(port)
    request = C_STORE()
    request.MessageID, request.Priority = 1, 2
    request.AffectedSOPClassUID, request.AffectedSOPInstanceUID = DX, instance
    request.DataSet = io.BytesIO(data)
    (context,) = [context for context in association.accepted_contexts if context.abstract_syntax == DX]
    association._reactor_checkpoint.clear()
    association.dimse.send_msg(request, context.context_id)
    _, answer = association.dimse.get_msg(block=True)
    association._reactor_checkpoint.set()
    association.release()
    return answer


def body(ds: Dataset) -> bytes:
    """The data set alone, as it goes over the wire."""
    file = io.BytesIO()
    pydicom.dcmwrite(file, Dataset({element.tag: element for element in ds}), implicit_vr=False, little_endian=True)
    return file.getvalue()


def wait_for(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.02)


def find(journal: Journal, film: bytes) -> Entry:
    entry = journal.find(key_of_instance(uid_of(film)))
    assert entry is not None
    return entry


def in_state(journal: Journal, film: bytes, state: State) -> Callable[[], bool]:
    return lambda: find(journal, film).state is state


# --------------------------------------------------------------------------------------------------------------- node


def test_a_film_is_on_disk_and_on_the_list_when_success_goes_back(
    node: Callable[..., Node], journal: Journal, spool: Spool, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "pneumo_edge")
    assert store(node().port, film) == [0x0000]
    key = key_of_instance(uid_of(film))
    kept = spool.read(key, FILM)
    assert kept is not None
    there = dataset(kept)
    assert there == dataset(film)
    assert there.file_meta.TransferSyntaxUID == uid.ExplicitVRLittleEndian
    # Another connection: what it sees is in the file.
    with sqlite3.connect(spool.journal) as other:
        rows = other.execute("SELECT key, source, state FROM films").fetchall()
    other.close()
    assert rows == [(key, "dicom", "received")]
    written = caplog.text + " ".join(map(str, rows)) + " ".join(map(str, spool.root.rglob("*")))
    assert f"film {key[:8]}: received from MODALITY at 127.0.0.1" in caplog.text
    assert not [secret for secret in (*SECRETS, uid_of(film)) if secret in written]


@pytest.mark.parametrize("kind", KINDS)
def test_it_takes_what_films_come_as(node: Callable[..., Node], journal: Journal, film: bytes, kind: str) -> None:
    ds = dataset(film)
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.UID(kind)
    file = io.BytesIO()
    ds.save_as(file)
    assert store(node().port, file.getvalue()) == [0x0000]
    assert journal.counts()[State.received] == 1


def test_it_takes_every_transfer_syntax_that_can_be_read_and_nothing_else(node: Callable[..., Node]) -> None:
    others = (uid.DeflatedExplicitVRLittleEndian, uid.MPEG2MPML)
    entity = AE("MODALITY")
    # One context for each: of several syntaxes in one, a node takes one.
    entity.requested_contexts = [
        *(build_context(DX, syntax) for syntax in (*TRANSFER_SYNTAXES, *others)),
        build_context(uid.CTImageStorage),
    ]
    association = entity.associate("127.0.0.1", node().port, ae_title="PNEUMO")
    taken = {context.transfer_syntax[0] for context in association.accepted_contexts}
    association.release()
    assert taken == set(TRANSFER_SYNTAXES)
    assert len(association.rejected_contexts) == 3


def test_a_film_that_is_sent_twice_is_the_same_film(
    node: Callable[..., Node], journal: Journal, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pneumo_edge")
    port = node().port
    assert store(port, film, film) == [0x0000, 0x0000]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: store(port, film), range(4))) == [[0x0000]] * 4
    assert len(journal.recent()) == 1
    assert caplog.text.count("received again from MODALITY at 127.0.0.1, the same") == 5
    journal.failed(find(journal, film), "it was refused")
    assert store(port, film) == [0x0000]
    assert find(journal, film).state is State.received


@pytest.mark.parametrize("state", [State.received, State.answered, State.failed])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PatientName": "Other^Name"}, "other patient"),
        ({"PatientID": "OTHER"}, "other patient"),
        ({"AccessionNumber": "B8"}, "other accession number"),
        ({"StudyInstanceUID": "1.2.3.4"}, "other study"),
        ({"StudyDescription": "Chest"}, "other details"),
        ({"ViewPosition": "LL"}, "other details"),
        ({"PixelData": bytes(120 * 160)}, "other pixels"),
    ],
)
def test_a_corrected_film_takes_the_place_of_the_one_before(
    node: Callable[..., Node],
    journal: Journal,
    spool: Spool,
    pixels: npt.NDArray[np.uint8],
    caplog: pytest.LogCaptureFixture,
    state: State,
    change: dict[str, Any],
    words: str,
) -> None:
    caplog.set_level(logging.INFO, "pneumo_edge")
    first, corrected = dicom_film(pixels, 7), dicom_film(pixels, 7, **change)
    port = node().port
    assert store(port, first) == [0x0000]
    if state is State.answered:
        record = {"label": "NORMAL", "probability": 0.1, "in_distribution": True}
        journal.answered(find(journal, first), record, [("PACS", "sr")])
    elif state is State.failed:
        journal.failed(find(journal, first), "it was cut off")
    assert store(port, corrected) == [0x0000]
    entry = find(journal, first)
    assert (entry.state, entry.revision, entry.error) == (State.received, 1, None)
    # The answer to the wrong patient is not sent any more.
    assert journal.waiting("PACS") == []
    kept = dataset(spool.read(entry.key, FILM) or b"")
    assert kept[next(iter(change))].value == next(iter(change.values()))
    assert words in caplog.text
    # And it is the corrected one from now on.
    assert store(port, corrected) == [0x0000]
    assert find(journal, first).revision == 1
    assert not [secret for secret in (*SECRETS, "Other", "OTHER", "B8") if secret in caplog.text]


def test_the_same_film_in_another_file_is_the_same_film(
    node: Callable[..., Node], journal: Journal, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pneumo_edge")
    packed = dataset(film)
    packed.compress(uid.RLELossless, generate_instance_uid=False)
    # Of nothing that an answer says.
    packed.StationName = "Room 2"
    port = node().port
    assert store(port, film) == [0x0000]
    record = {"label": "NORMAL", "probability": 0.1, "in_distribution": True}
    journal.answered(find(journal, film), record, [("PACS", "sr")])
    assert store(port, written(packed)) == [0x0000]
    assert (find(journal, film).state, find(journal, film).revision) == (State.answered, 0)
    assert len(journal.waiting("PACS")) == 1
    assert "received again from MODALITY at 127.0.0.1, the same" in caplog.text
    # What has failed is tried in any form.
    journal.again(find(journal, film).key)
    journal.failed(find(journal, film), "it could not be unpacked")
    assert store(port, written(packed)) == [0x0000]
    assert find(journal, film).state is State.received


def test_another_patients_film_under_a_uid_that_is_taken_is_refused(
    node: Callable[..., Node], journal: Journal, spool: Spool, film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    other = dicom_film(np.zeros((120, 160), np.uint8), 7, PatientID="OTHER", PatientName="Else^Somebody")
    port = node().port
    assert store(port, film, other) == [0x0000, 0xA900]
    entry = find(journal, film)
    assert (entry.revision, dataset(spool.read(entry.key, FILM) or b"").PatientID) == (0, "PHANTOM-7")
    assert f"from MODALITY at 127.0.0.1: a film was refused: film {entry.key[:8]} has its SOPInstanceUID" in caplog.text
    assert "with other pixels of another patient" in caplog.text


def test_an_answer_of_our_own_that_comes_back_is_dropped(
    node: Callable[..., Node],
    journal: Journal,
    classifier: Classifier,
    film: bytes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    capture, _, _ = answers_to(film, classifier)
    assert store(node().port, written(capture)) == [0x0000]
    assert journal.recent() == []
    assert "an answer of pneumo came back as a film: dropped" in caplog.text


def test_of_a_film_whose_row_cannot_be_written_nothing_is_left(
    node: Callable[..., Node], journal: Journal, spool: Spool, film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    port = node().port
    with monkeypatch.context() as patch:
        patch.setattr(journal, "add", full)
        assert store(port, film) == [0xA700]
    assert list((spool.root / "films").iterdir()) == []
    assert store(port, film) == [0x0000]


def test_a_stranger_is_refused(node: Callable[..., Node], caplog: pytest.LogCaptureFixture) -> None:
    port = node(allow=("MODALITY", "CT 2")).port
    wrong = call(port, called="ORTHANC")
    assert (wrong.is_rejected, wrong.acceptor.primitive.diagnostic) == (True, 7)
    unknown = call(port, calling="STRANGER")
    assert (unknown.is_rejected, unknown.acceptor.primitive.diagnostic) == (True, 3)
    allowed = call(port, calling="CT 2")
    assert allowed.is_established
    assert allowed.send_c_echo().Status == 0x0000
    allowed.release()
    assert "from MODALITY at 127.0.0.1: the association was rejected: it calls for the AE title ORTHANC" in caplog.text
    assert "its AE title STRANGER is not in --allow" in caplog.text


def test_too_many_associations_are_asked_to_come_again(node: Callable[..., Node]) -> None:
    port = node(associations=2, share=9).port
    held = [call(port), call(port)]
    assert all(association.is_established for association in held)
    one_more = call(port)
    # Transient, by the provider, local limit exceeded.
    refused = one_more.acceptor.primitive
    assert (one_more.is_rejected, refused.result, refused.result_source, refused.diagnostic) == (True, 2, 3, 2)
    for association in held:
        association.release()
    wait_for(lambda: call_and_release(port), "there is room again")


def test_one_caller_does_not_shut_the_others_out(node: Callable[..., Node], caplog: pytest.LogCaptureFixture) -> None:
    port = node(associations=8, share=2).port
    held = [call(port), call(port)]
    refused = call(port)
    assert refused.is_rejected
    assert (refused.acceptor.primitive.result, refused.acceptor.primitive.diagnostic) == (2, 2)
    assert "MODALITY at 127.0.0.1: the association was rejected: too many associations at once" in caplog.text
    entity = AE("CT")
    entity.add_requested_context("1.2.840.10008.1.1")
    other = entity.associate("127.0.0.1", port, ae_title="PNEUMO", bind_address=("127.0.0.2", 0))
    assert other.is_established
    for association in (*held, other):
        association.release()


def slowed(monkeypatch: pytest.MonkeyPatch, of: type, method: str, seconds: float) -> None:
    """Lets a method begin later, as on a busy machine."""
    done = getattr(of, method)

    def later(*arguments: Any) -> Any:
        time.sleep(seconds)
        return done(*arguments)

    monkeypatch.setattr(of, method, later)


def test_who_has_released_takes_no_place(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its connection may be there a moment longer, and its peer does not know of that."""
    slowed(monkeypatch, Node, "_closed", 1.0)
    monkeypatch.setattr("pneumo_edge.serve.node._MOMENT", 0.0)
    port = node(associations=1, share=1).port
    assert all(call_and_release(port) for _ in range(3))
    time.sleep(2)
    held = call(port)
    assert held.is_established
    assert call(port).is_rejected
    held.release()
    assert call_and_release(port)
    assert caplog.text.count("too many associations at once") == 1


def test_a_thread_that_has_yet_to_end_takes_no_place(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = Association.kill

    def kill(association: Association) -> None:
        if association.is_acceptor:
            time.sleep(2)
        ended(association)

    monkeypatch.setattr(Association, "kill", kill)
    port = node(associations=1, share=1).port
    assert all(call_and_release(port) for _ in range(30))


def test_who_hangs_up_without_a_word_may_call_again_at_once(
    node: Callable[..., Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, Node, "_closed", 0.2)
    port = node(associations=1, share=1, seconds=600.0).port
    for _ in range(10):
        association = call(port)
        assert association.is_established
        association.abort()
    for _ in range(3):
        association = call(port)
        assert association.is_established
        association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    assert call_and_release(port)


def test_who_only_connects_takes_no_place_of_those_who_call(node: Callable[..., Node]) -> None:
    port = node(associations=2, share=2, seconds=600.0).port
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
    held = [call(port), call(port)]
    assert all(association.is_established for association in held)
    for association in held:
        association.release()
    for stranger in silent:
        stranger.close()


def test_a_clock_that_is_set_ends_nobody_and_keeps_nobody(
    node: Callable[..., Node], film: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pynetdicom measures by the time of day how long a peer is silent."""
    year, now = 365 * 86400.0, time.time
    busy = call(node(seconds=600.0).port)
    silent = call(node(seconds=2.0).port)
    assert busy.is_established
    assert silent.is_established
    monkeypatch.setattr(time, "time", lambda: now() + year)
    time.sleep(1)
    assert busy.send_c_store(dataset(film)).Status == 0x0000
    monkeypatch.setattr(time, "time", lambda: now() - year)
    wait_for(lambda: silent.is_aborted, "it is ended")
    assert busy.send_c_echo().Status == 0x0000
    busy.release()


def call_and_release(port: int) -> bool:
    association = call(port)
    established: bool = association.is_established
    if established:
        association.release()
    return established


def test_a_full_queue_and_a_full_disk_make_a_modality_try_again(
    node: Callable[..., Node], journal: Journal, spool: Spool, pixels: npt.NDArray[np.uint8]
) -> None:
    first, second = dicom_film(pixels, 1), dicom_film(pixels, 2)
    assert store(node(queue=1).port, first, second, first) == [0x0000, 0xA700, 0x0000]
    assert store(node(room=1 << 60).port, second, first) == [0xA700, 0x0000]
    assert [entry.key for entry in journal.recent()] == [key_of_instance(uid_of(first))]
    assert len(list((spool.root / "films").iterdir())) == 1


@pytest.mark.skipif(os.name != "posix", reason="the limit is POSIX's")
def test_a_film_that_cannot_be_written_is_refused_and_nothing_is_left_of_it(tmp_path: Path, film: bytes) -> None:
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from pneumo_edge.serve.inbox import Inbox, Limits; from pneumo_edge.serve.journal import Journal\n"
        "from pneumo_edge.serve.node import Node; from pneumo_edge.serve.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1])); inbox = Inbox(Journal(spool.journal), spool, Limits(room=0))\n"
        "node = Node(inbox, ae_title='PNEUMO', host='127.0.0.1', port=0)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))\n"
        "node.start(); print(node.port, flush=True); sys.stdin.read(); node.stop()"
    )
    line = [sys.executable, "-c", script, str(tmp_path / "spool")]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = int(process.stdout.readline())
        assert store(port, film, film) == [0xA700, 0xA700]
        process.stdin.close()
        assert process.wait(600) == 0
    assert list((tmp_path / "spool" / "films").iterdir()) == []


def test_what_cannot_be_answered_is_refused_for_good(
    node: Callable[..., Node], journal: Journal, pixels: npt.NDArray[np.uint8]
) -> None:
    port = node().port
    homeless = dicom_film(pixels, 1, StudyInstanceUID=None)
    assert store(port, homeless) == [0xA900]
    announced_otherwise = store_raw(port, "1.2.3.4", body(dataset(dicom_film(pixels, 2))))
    assert announced_otherwise.Status == 0xA900
    assert "SOPInstanceUID" in announced_otherwise.ErrorComment
    for garbage in (b"\xff" * 1000, bytes(1000), body(dataset(dicom_film(pixels, 3)))[:40]):
        assert store_raw(port, "1.2.3.4", garbage).Status in {0xA900, 0xC000}
    assert journal.recent() == []
    assert store(port, dicom_film(pixels, 4)) == [0x0000]


def test_more_bytes_at_once_than_there_is_room_for_are_cut_off(
    node: Callable[..., Node], journal: Journal, film: bytes
) -> None:
    port = node(bytes_in_flight=1_000_000).port
    large = dicom_film(np.zeros((2000, 2000), np.uint8), 1)
    assert store(port, large) == [None]
    assert store(port, film) == [0x0000]
    assert len(journal.recent()) == 1


@pytest.mark.parametrize(
    "first_bytes",
    [
        struct.pack(">BBL", 1, 0, 0xFFFFFFFF) + bytes(100_000),
        struct.pack(">BBL", 4, 0, 0x7FFFFFFF) + bytes(100_000),
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">BBL", 1, 0, 100),
        b"",
    ],
    ids=["a request of 4 GB", "data of 2 GB", "HTTP", "half a request", "silence"],
)
def test_who_does_not_speak_dicom_is_hung_up_on(node: Callable[..., Node], first_bytes: bytes) -> None:
    port = node(seconds=1.0).port
    with socket.create_connection(("127.0.0.1", port), timeout=60) as stranger:
        stranger.sendall(first_bytes)
        try:
            while stranger.recv(4096):
                pass
        except ConnectionError:
            pass
    assert call_and_release(port)


def test_strangers_who_only_connect_do_not_pile_up(node: Callable[..., Node]) -> None:
    port = node(associations=1, seconds=2.0).port
    before = threading.active_count()
    crowd = [socket.create_connection(("127.0.0.1", port)) for _ in range(40)]
    hung_up_on = 0
    for stranger in crowd:
        stranger.settimeout(60)
        hung_up_on += stranger.recv(1) == b""
    assert hung_up_on == 40
    # Each that is let in has two threads.
    assert threading.active_count() <= before + 2 * 4
    for stranger in crowd:
        stranger.close()
    wait_for(lambda: call_and_release(port), "there is room again")


def test_a_node_that_is_stopped_ends_its_associations(node: Callable[..., Node]) -> None:
    started = node()
    association = call(started.port)
    started.stop()
    wait_for(lambda: association.is_aborted, "it is aborted")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", started.port))


def test_a_port_in_use_and_an_address_that_is_not_there_are_named(node: Callable[..., Node], inbox: Inbox) -> None:
    port = node().port
    with pytest.raises(PassingError, match=f"port {port}: .*--dicom-port"):
        Node(inbox, ae_title="PNEUMO", host="127.0.0.1", port=port)
    with pytest.raises(PassingError, match="no such address, or not yet"):
        Node(inbox, ae_title="PNEUMO", host="192.0.2.1", port=0)


def test_a_transfer_that_breaks_off_is_in_the_log(
    node: Callable[..., Node], film: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pneumo_edge")
    port = node().port
    association = call(port)
    association.dul.socket.send(struct.pack(">BBLLBB", 4, 0, 100_000, 99_996, 1, 0) + bytes(50_000))
    time.sleep(0.2)
    association.dul.socket.socket.shutdown(socket.SHUT_RDWR)
    wait_for(lambda: "broke off" in caplog.text, "it is told")
    assert "from MODALITY at 127.0.0.1: the association broke off" in caplog.text
    # Who ends in good order is not remarked upon.
    caplog.clear()
    assert store(port, film) == [0x0000]
    assert "broke off" not in caplog.text


# -------------------------------------------------------------------------------------------------------------- judge


def test_a_film_is_judged_and_answered(judge: Judge, journal: Journal, spool: Spool, film: bytes) -> None:
    key = key_of_instance(uid_of(film))
    spool.add(key, film)
    journal.add(key, "dicom")
    wait_for(in_state(journal, film, State.answered), "it is judged")
    entry = find(journal, film)
    assert (entry.label, entry.in_distribution, len(journal.waiting("PACS"))) == ("PNEUMONIA", True, 2)
    record = json.loads(spool.read(key, ANSWER) or b"")
    assert (record["label"], record["probability"]) == ("PNEUMONIA", entry.probability)
    assert record["path"] == f"film {key[:8]}"
    with Image.open(spool.path(key, PICTURE)) as picture, Image.open(spool.path(key, HEATMAP)) as heatmap:
        assert (picture.mode, heatmap.mode) == ("L", "RGBA")
        assert picture.size == heatmap.size
        assert max(picture.size) == 720
    for name in (CAPTURE, REPORT):
        assert spool.path(key, name).exists()


def test_a_film_from_the_page_has_no_answer_in_dicom(judge: Judge, journal: Journal, spool: Spool, film: bytes) -> None:
    key = key_of_instance(uid_of(film))
    spool.add(key, film)
    journal.add(key, "page")
    wait_for(in_state(journal, film, State.answered), "it is judged")
    assert journal.sendings([key])[key] == []
    assert not spool.path(key, REPORT).exists()


def test_a_film_that_cannot_be_judged_gets_a_report_that_says_so(
    judge: Judge, journal: Journal, spool: Spool, pixels: npt.NDArray[np.uint8]
) -> None:
    film = dicom_film(pixels, 1, Modality="PX")
    key = key_of_instance(uid_of(film))
    spool.add(key, film)
    journal.add(key, "dicom")
    wait_for(in_state(journal, film, State.failed), "it is judged")
    entry = find(journal, film)
    assert "panoramic X-ray of the jaw" in str(entry.error)
    assert [each.object for each in journal.waiting("PACS")] == ["sr"]
    assert not spool.path(key, CAPTURE).exists()
    text = texts(spool.path(key, REPORT).read_bytes())
    assert "No verdict" in text
    assert "panoramic X-ray of the jaw" in text
    assert "NORMAL" not in text


def test_a_film_that_is_gone_and_one_that_ends_the_process_do_not_stop_the_others(
    judge: Judge, inbox: Inbox, film: bytes, pixels: npt.NDArray[np.uint8]
) -> None:
    journal, spool = inbox.journal, inbox.spool
    judge.stop()
    gone, deadly = dicom_film(pixels, 1), dicom_film(pixels, 2)
    for each in (gone, deadly, film):
        spool.add(key_of_instance(uid_of(each)), each)
        journal.add(key_of_instance(uid_of(each)), "dicom")
    spool.remove(key_of_instance(uid_of(gone)))
    for _ in range(5):
        journal.begin(find(journal, deadly))
    another = Judge(judge._classifier, inbox, send=TO)
    another.start()
    wait_for(in_state(journal, film, State.answered), "it is judged")
    another.stop()
    assert "not in the spool" in str(find(journal, gone).error)
    assert "5 times" in str(find(journal, deadly).error)


def test_old_films_are_deleted_while_it_judges(classifier: Classifier, inbox: Inbox, film: bytes) -> None:
    journal, spool = inbox.journal, inbox.spool
    key = key_of_instance(uid_of(film))
    spool.add(key, film)
    entry, _ = journal.add(key, "page")
    journal.failed(entry, "why")
    made = Judge(classifier, inbox, keep_days=-1)
    made.start()
    wait_for(lambda: journal.find(key) is None, "it is deleted")
    made.stop()
    assert not spool.path(key).exists()


# ------------------------------------------------------------------------------------------------------------ answers


def texts(report: bytes) -> str:
    """Returns all text of a structured report, codes by their meaning."""

    def walk(item: Dataset) -> Iterator[str]:
        for code in (*item.get("ConceptNameCodeSequence", ()), *item.get("ConceptCodeSequence", ())):
            yield str(code.CodeMeaning)
        if "TextValue" in item:
            yield item.TextValue
        for value in item.get("MeasuredValueSequence", ()):
            yield str(value.NumericValue)
        for child in item.get("ContentSequence", ()):
            yield from walk(child)

    return "\n".join(walk(dataset(report)))


def answers_to(film: bytes, classifier: Classifier) -> tuple[Dataset, Dataset, Prediction]:
    prediction = classifier.predict(film, "film")
    made = Answer(read_header(film), prediction, classifier, DEVICE, screen=screen_film(film, "film"))
    return dataset(made.capture()), dataset(made.report()), prediction


def test_an_answer_belongs_to_the_film_and_says_what_was_found(classifier: Classifier, film: bytes) -> None:
    source = dataset(film)
    capture, report, prediction = answers_to(film, classifier)
    assert (capture.SOPClassUID, report.SOPClassUID) == (uid.SecondaryCaptureImageStorage, uid.Comprehensive3DSRStorage)
    assert len({ds.SeriesInstanceUID for ds in (source, capture, report)}) == 3
    for ds in (capture, report):
        for keyword in (
            "StudyInstanceUID", "StudyDate", "StudyID", "AccessionNumber",
            "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
        ):  # fmt: skip
            assert ds[keyword].value == source[keyword].value
        assert ds.Manufacturer == "pneumo"
        assert ds.ManufacturerModelName == "tiny"
        assert ds.SoftwareVersions.startswith("pneumo ")
        assert "Not a diagnosis" in ds.SeriesDescription
    (referenced,) = capture.SourceImageSequence
    assert referenced.ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert capture.ImageComments == NOT_A_DIAGNOSIS
    assert capture.PatientOrientation == ["L", "F"]
    assert capture.pixel_array.shape == (capture.Rows, capture.Columns, 3)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    assert study.ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID

    text = texts(written(report))
    assert prediction.label == "PNEUMONIA"
    for said in (
        "PNEUMONIA. Probability of pneumonia",
        "Pneumonia",
        NOT_A_DIAGNOSIS,
        "Probability of pneumonia",
        str(round(prediction.probability, 6)),
        "0.5",
        "0.75",
        "operating point balanced",
        "model.onnx",
        "tiny",
    ):
        assert said in text, text


def written(ds: Dataset) -> bytes:
    file = io.BytesIO()
    ds.save_as(file)
    return file.getvalue()


def test_a_withheld_verdict_is_told_with_the_reasons_and_without_a_probability(classifier: Classifier) -> None:
    blank = dicom_film(np.full((120, 160), 128, np.uint8), 1)
    capture, report, prediction = answers_to(blank, classifier)
    assert prediction.label is None
    text = texts(written(report))
    assert "No verdict" in text
    assert "almost blank" in text
    assert NOT_A_DIAGNOSIS in text
    assert not [word for word in ("Probability", "NORMAL", "PNEUMONIA", "Threshold") if word in text]
    # Grey below the captions: no colours lead the eye to what is no finding.
    picture = capture.pixel_array[:500].astype(int)
    assert np.ptp(picture, axis=2).max() == 0


def test_the_region_is_outlined_in_the_capture_and_told_in_the_report(local_bundle: Path) -> None:
    halves = np.full((200, 400), 30, np.uint8)
    halves[:, 200:] = 220
    spread = np.full((200, 400), 100, np.uint8)
    spread[:, 200:] = 126
    # Without a window a film is shown by its own range.
    for grey in (halves, spread):
        grey[0, :2] = 0, 255
    with Classifier.load(local_bundle) as local:
        outlined, report, prediction = answers_to(dicom_film(halves, 1), local)
        untouched, silent, vague = answers_to(dicom_film(spread, 2), local)
    assert prediction.label == vague.label == "PNEUMONIA"
    assert prediction.region is not None
    assert f"outlined: {prediction.region.area:.1%} of the film" in texts(written(report))
    assert "no region stands out" in texts(written(silent))
    # Above the captions: one thin line, or the film as it is.
    marked, plain = (np.ptp(ds.pixel_array[:360, :720].astype(int), axis=2) for ds in (outlined, untouched))
    assert 0.001 < (marked > 40).mean() < 0.05
    assert plain.max() == 0


@pytest.mark.parametrize("charset", [None, "", "ISO_IR 100", "ISO_IR 192", "ISO_IR 144"])
def test_an_answer_speaks_the_language_of_the_clinic(classifier: Classifier, film: bytes, charset: str | None) -> None:
    source = dataset(film)
    if charset is None:
        source.pop("SpecificCharacterSet", None)
    else:
        source.SpecificCharacterSet = charset
    film = written(source)
    prediction = classifier.predict(film, "film")
    made = Answer(
        read_header(film), prediction, classifier, DEVICE, screen=screen_film(film, "film"), words=Words("fr")
    )
    capture, report = dataset(made.capture()), dataset(made.report())
    text = texts(made.report())
    said = "PNEUMONIE. Probabilité de pneumonie"
    # In a character set without accents (here Cyrillic) there are none.
    assert (said if charset != "ISO_IR 144" else "PNEUMONIE. Probabilite de pneumonie") in text
    assert "Not a diagnosis" not in text
    assert "Ce n'est pas un diagnostic." in text
    assert "pas un diagnostic" in capture.ImageComments.lower()
    assert report.SeriesDescription.startswith("pneumo")
    assert "diagnostic" in report.SeriesDescription
    assert report.ContentSequence[0].ConceptCodeSequence[0].CodeValue == "fr"
    assert report.PatientName == source.PatientName
    # Codes keep the meanings that their registries give them.
    assert "Pneumonia" in text
    # Another language is another answer.
    english, _, _ = answers_to(film, classifier)
    assert english.SOPInstanceUID != capture.SOPInstanceUID
    assert english.Rows == capture.Rows


def test_the_note_is_burned_into_the_picture(classifier: Classifier, film: bytes) -> None:
    capture, _, _ = answers_to(film, classifier)
    foot = capture.pixel_array[-60:].reshape(-1, 3).astype(int)
    amber = (foot[:, 0] > 200) & (foot[:, 2] < 140) & (foot[:, 1] > 120)
    assert amber.sum() > 300


def test_the_same_film_gets_the_same_objects_and_another_judgement_others(classifier: Classifier, film: bytes) -> None:
    def uids(judging: Classifier, of: bytes) -> list[str]:
        capture, report, _ = answers_to(of, judging)
        return [ds[keyword].value for ds in (capture, report) for keyword in ("SOPInstanceUID", "SeriesInstanceUID")]

    first = uids(classifier, film)
    assert len(set(first)) == 4
    assert all(uid.UID(each).is_valid for each in first)
    assert uids(classifier, film) == first
    screening = Classifier(classifier.bundle, "model.onnx", operating_point="screening")
    other = dicom_film(np.asarray(dataset(film).pixel_array), 8)
    assert not {*first} & {*uids(screening, film), *uids(classifier, other)}


@pytest.mark.parametrize(
    ("character_set", "name"),
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "山田^太郎"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        ("ISO_IR 144", "Люкceмбypг"),
        (None, "Smith^John"),
    ],
)
def test_a_name_stands_in_the_answer_as_in_the_film(
    classifier: Classifier, pixels: npt.NDArray[np.uint8], character_set: Any, name: str
) -> None:
    film = dicom_film(
        pixels, 1, **({} if character_set is None else {"SpecificCharacterSet": character_set}), PatientName=name
    )
    capture, report, _ = answers_to(film, classifier)
    assert str(capture.PatientName) == str(report.PatientName) == name
    for ds in (capture, report):
        # Where the film names none, what we write ourselves is in Latin letters.
        assert ds.SpecificCharacterSet == dataset(film).get("SpecificCharacterSet", "ISO_IR 100")


TAGS = st.sampled_from(
    ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
     "AccessionNumber", "ReferringPhysicianName", "StudyDescription", "SpecificCharacterSet", "PatientOrientation",
     "Laterality", "LossyImageCompression", "LossyImageCompressionRatio", "TimezoneOffsetFromUTC", "BurnedInAnnotation"]
)  # fmt: skip


def wild_film(tags: dict[str, bytes]) -> bytes:
    """Returns a film of 2 x 2 pixels, elements of which hold any bytes."""
    ds = dataset(dicom_film(np.zeros((2, 2), np.uint8), 1))
    elements = {element.tag: body(Dataset({element.tag: element})) for element in ds}
    for keyword, value in tags.items():
        tag = pydicom.tag.Tag(keyword)
        kind, even = pydicom.datadict.dictionary_VR(tag).encode(), value + b" " * (len(value) % 2)
        elements[tag] = struct.pack("<HH2sH", tag.group, tag.element, kind, len(even)) + even
    return b"".join(elements[tag] for tag in sorted(elements))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wild=st.dictionaries(TAGS, st.binary(max_size=40), max_size=6))
def test_a_film_with_wild_tags_is_answered_all_the_same(
    classifier: Classifier, prediction: Prediction, wild: dict[str, bytes]
) -> None:
    film = wild_film(wild)
    ds = dataset(dicom_film(np.zeros((2, 2), np.uint8), 1))
    try:
        header = read_header(film)
    except ValueError:
        # The node does not even take it: no text of such a film can be read.
        assert b"\0" in wild["SpecificCharacterSet"]
        return
    report = Answer(header, Failure("film", "it is a tooth"), classifier, DEVICE).report()
    assert "it is a tooth" in texts(report)
    capture = Answer(header, prediction, classifier, DEVICE, screen=Image.new("L", (8, 8))).capture()
    for answer in (report, capture):
        made = dataset(answer)
        assert made.StudyInstanceUID == ds.StudyInstanceUID
        # Whatever stood in the film: what we make of it is valid.
        for element in made:
            if element.VR in ("LO", "SH", "PN", "DA", "TM", "CS") and element.value not in (None, ""):
                several = element.VM > 1
                for value in element.value if several else [element.value]:
                    for part in str(value).split("=") if element.VR == "PN" else [str(value)]:
                        validate_value(element.VR, part, RAISE)


@pytest.mark.parametrize(
    ("tags", "keyword", "becomes"),
    [
        ({"PatientName": b"Smith\x07^John"}, "PatientName", "Smith^John"),
        ({"PatientName": "M\xfcller^J\xf6rg".encode("latin-1")}, "PatientName", ""),
        ({"PatientName": b"x" * 70}, "PatientName", ""),
        ({"PatientID": b"9" * 70}, "PatientID", ""),
        ({"PatientID": b"1\\2"}, "PatientID", ""),
        ({"PatientBirthDate": b"1.1.2010"}, "PatientBirthDate", ""),
        ({"PatientSex": b"W"}, "PatientSex", ""),
        ({"SpecificCharacterSet": b"ISO_IR 1000"}, "SpecificCharacterSet", "ISO_IR 100"),
        ({"TimezoneOffsetFromUTC": b"+9999"}, "TimezoneOffsetFromUTC", None),
        ({"Laterality": b""}, "Laterality", None),
    ],
)
def test_what_breaks_the_rules_of_dicom_is_not_taken_over(
    classifier: Classifier, prediction: Prediction, tags: dict[str, bytes], keyword: str, becomes: str | None
) -> None:
    film = wild_film(tags)
    made = Answer(read_header(film), prediction, classifier, DEVICE, screen=Image.new("L", (8, 8)))
    mended = becomes == "Smith^John" or keyword == "Laterality"
    assert made.left_out == ([] if mended else [keyword])
    for answer in (made.capture(), made.report()):
        found = dataset(answer).get(keyword)
        assert found is None if becomes is None else str(found or "") == becomes


@pytest.mark.parametrize(("offset", "hours"), [("+0900", 9.0), ("-0330", -3.5), (None, None)])
def test_dates_and_times_are_of_the_zone_of_the_film(
    classifier: Classifier, pixels: npt.NDArray[np.uint8], offset: str | None, hours: float | None
) -> None:
    film = dicom_film(pixels, 7, **({} if offset is None else {"TimezoneOffsetFromUTC": offset}))
    zone = None if hours is None else timezone(timedelta(hours=hours))
    before = datetime.now(zone).replace(tzinfo=None)
    for made in answers_to(film, classifier)[:2]:
        assert made.get("TimezoneOffsetFromUTC") == offset
        said = [(made.ContentDate, made.ContentTime), (made.InstanceCreationDate, made.InstanceCreationTime)]
        if "DateOfSecondaryCapture" in made:
            said.append((made.DateOfSecondaryCapture, made.TimeOfSecondaryCapture))
        (equipment,) = made.ContributingEquipmentSequence
        said.append((equipment.ContributionDateTime[:8], equipment.ContributionDateTime[8:]))
        for day, moment in said:
            then = datetime.strptime(f"{day}{str(moment)[:6]}", "%Y%m%d%H%M%S")
            assert -2 <= (then - before).total_seconds() <= 600


def test_another_answer_has_other_uids(classifier: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    film = dicom_film(pixels, 7)
    header = read_header(film)

    def report(answer: Prediction | Failure, of: Dataset = header, device: str = DEVICE, reason: Any = None) -> Any:
        return dataset(Answer(of, answer, classifier, device, reason=reason).report()).SOPInstanceUID

    failure, real = Failure("film", "it is cut off"), classifier.predict(film, "film")
    other = read_header(dicom_film(pixels, 7, PatientName="Another^Name"))
    found = [report(failure), report(real), report(real, other), report(real, device="2.25.8"),
             report(failure, reason="not-chest")]  # fmt: skip
    assert len(set(found)) == 5
    assert report(classifier.predict(film, "another name")) == report(real)


def test_a_report_has_other_forms_for_those_who_do_not_take_the_best(classifier: Classifier, film: bytes) -> None:
    made = Answer(read_header(film), classifier.predict(film, "film"), classifier, DEVICE).report()
    forms = [as_form(made, kind) for kind in REPORTS]
    assert len({form.SOPInstanceUID for form in forms}) == len({form.SOPClassUID for form in forms}) == 4
    basic = forms[-1]
    assert {item.ValueType for item in basic.ContentSequence} == {"TEXT"}
    text = texts(written(basic))
    assert "PNEUMONIA. Probability of pneumonia" in text
    assert NOT_A_DIAGNOSIS in text
    assert "operating point balanced" in text


@pytest.fixture(scope="module")
def locating(local_bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(local_bundle) as loaded:
        yield loaded


def outlines(report: Dataset) -> list[list[tuple[float, float]]]:
    """All that a report outlines, as points (x, y)."""
    found = []

    def walk(item: Dataset) -> None:
        if item.get("ValueType") == "SCOORD":
            assert item.GraphicType == "POLYLINE"
            points = [float(each) for each in item.GraphicData]
            found.append(list(zip(points[::2], points[1::2], strict=True)))
        for child in item.get("ContentSequence", ()):
            walk(child)

    walk(report)
    return found


def test_a_report_outlines_the_region_in_the_pixels_of_the_film(
    locating: Classifier, pixels: npt.NDArray[np.uint8]
) -> None:
    film = dicom_film(pixels, 7)
    _, report, prediction = answers_to(film, locating)
    assert prediction.region is not None
    assert prediction.region.polygons
    assert [line[:-1] for line in outlines(report)] == [
        [pytest.approx(point, abs=0.06) for point in polygon] for polygon in prediction.region.polygons
    ]
    assert all(line[0] == line[-1] for line in outlines(report))
    assert all(0 <= x <= 160 and 0 <= y <= 120 for line in outlines(report) for x, y in line)
    # Where there is no verdict, nothing is outlined.
    withheld = replace(prediction, label=None)
    made = Answer(read_header(film), withheld, locating, DEVICE).report()
    assert outlines(dataset(made)) == []


def test_a_hole_is_not_outlined_as_a_finding(locating: Classifier, pixels: npt.NDArray[np.uint8]) -> None:
    film = dicom_film(pixels, 7)
    prediction = locating.predict(film, "film")
    assert prediction.region is not None

    def square(low: float, high: float) -> tuple[tuple[float, float], ...]:
        return (low, low), (high, low), (high, high), (low, high)

    nested = replace(prediction.region, polygons=(square(30, 40), square(10, 60), square(20, 50), square(70, 80)))
    made = dataset(Answer(read_header(film), replace(prediction, region=nested), locating, DEVICE).report())
    # The whole, the island in its hole, and the one beside it.
    assert [line[0] for line in outlines(made)] == [(30, 30), (10, 10), (70, 70)]


DCIODVFY = find_program("dciodvfy")


@pytest.mark.skipif(
    DCIODVFY is None and os.environ.get("CI") != "true", reason="needs dciodvfy: apt install dicom3tools"
)
def test_the_objects_keep_to_their_definitions(
    classifier: Classifier, locating: Classifier, pixels: npt.NDArray[np.uint8], tmp_path: Path
) -> None:
    assert DCIODVFY is not None
    film = dicom_film(pixels, 7, Laterality="", TimezoneOffsetFromUTC="+0900")
    blank = dicom_film(np.full((120, 160), 128, np.uint8), 1, BodyPartExamined=None)
    tooth = Answer(read_header(film), Failure("film", "it is a tooth"), classifier, DEVICE).report()
    for number, (of, judging) in enumerate(((film, classifier), (blank, classifier), (film, locating))):
        capture, report, _ = answers_to(of, judging)
        data = written(report)
        forms = [as_form(each, kind) for each in (data, tooth) for kind in REPORTS]
        for each in (capture, *forms):
            path = tmp_path / f"{number}.dcm"
            path.write_bytes(written(each))
            said = subprocess.run([DCIODVFY, path], capture_output=True, text=True, check=False).stderr
            ours = [line for line in said.splitlines() if line.startswith(("Error", "Warning"))]
            # A scheme of our own, which the standard allows for (PS3.3 8.2).
            ours = [line for line in ours if "Unrecognized defined term <99PNEUMO>" not in line]
            if of is blank:
                # It does not say what it is of, so that there is nothing to be said of the side either.
                ours = [line for line in ours if "only permitted to be empty when actually unknown" not in line]
            assert not ours, (each.SOPClassUID.name, ours)


# ------------------------------------------------------------------------------------------------------------- sender


class Pacs:
    """A PACS with moods."""

    def __init__(self, port: int = 0, **answers: int) -> None:
        """`answers`: status by keyword of the kind of object; those without one are not negotiated."""
        self.stored: list[Dataset] = []
        self.comment = ""
        self.requested: list[Any] = []
        self.hangs, self.asked = threading.Event(), threading.Event()
        self.answers = {getattr(uid, keyword): status for keyword, status in answers.items()}
        entity = AE("PACS")
        entity.require_called_aet = True
        for kind in self.answers:
            entity.add_supported_context(kind, uid.ImplicitVRLittleEndian)
        self._server = entity.start_server(
            ("127.0.0.1", port),
            block=False,
            evt_handlers=[(evt.EVT_C_STORE, self._store), (evt.EVT_REQUESTED, self._asked)],
        )
        assert self._server is not None
        self.port = int(self._server.server_address[1])

    def _asked(self, event: Any) -> None:
        self.requested = event.assoc.requestor.primitive.presentation_context_definition_list

    def _store(self, event: Any) -> Dataset:
        self.asked.set()
        while self.hangs.is_set():
            time.sleep(0.05)
        status = Dataset()
        status.Status = self.answers[event.request.AffectedSOPClassUID]
        if status.Status == 0x0000:
            self.stored.append(event.dataset)
        elif self.comment:
            status.ErrorComment = self.comment
        return status

    def close(self) -> None:
        assert self._server is not None
        self._server.ae.shutdown()


BOTH = {"SecondaryCaptureImageStorage": 0x0000, "Comprehensive3DSRStorage": 0x0000}


@pytest.fixture
def answered(classifier: Classifier, inbox: Inbox, film: bytes) -> bytes:
    """A film that has been judged and waits to be sent."""
    journal = inbox.journal
    key = key_of_instance(uid_of(film))
    inbox.spool.add(key, film)
    journal.add(key, "dicom")
    made = Judge(classifier, inbox, send=TO)
    made.start()
    wait_for(in_state(journal, film, State.answered), "it is judged")
    made.stop()
    return film


@pytest.fixture
def sender(inbox: Inbox) -> Iterator[Callable[..., Sender]]:
    """Starts a sender to "PACS" that is stopped after the test."""
    started = []

    def start(port: int, title: str = "PACS") -> Sender:
        destination = Destination("PACS", ("sc", "sr"), Peer(title, "127.0.0.1", port))
        made = Sender(inbox, destination, make_link(destination, "PNEUMO"))
        made.start()
        started.append(made)
        return made

    yield start
    for made in started:
        made.stop()


def tries(journal: Journal, film: bytes) -> list[Any]:
    key = key_of_instance(uid_of(film))
    return journal.sendings([key])[key]


def test_both_objects_arrive(sender: Callable[..., Sender], journal: Journal, spool: Spool, answered: bytes) -> None:
    pacs = Pacs(**BOTH)
    sender(pacs.port)
    wait_for(in_state(journal, answered, State.sent), "it is sent")
    pacs.close()
    key = key_of_instance(uid_of(answered))
    sent = [dataset(spool.path(key, name).read_bytes()) for name in (CAPTURE, REPORT)]
    assert [ds.SOPInstanceUID for ds in pacs.stored] == [ds.SOPInstanceUID for ds in sent]
    assert pacs.stored[0].PixelData == sent[0].PixelData


def test_a_pacs_that_is_away_or_refuses_is_tried_again(
    sender: Callable[..., Sender], journal: Journal, answered: bytes, nobody: int
) -> None:
    sender(nobody)
    wait_for(lambda: tries(journal, answered)[0].attempts >= 1, "it has been tried")
    assert find(journal, answered).state is State.answered
    assert tries(journal, answered)[0].error == "the PACS does not answer"
    pacs = Pacs(nobody, **BOTH)
    pacs.answers[uid.Comprehensive3DSRStorage] = 0xA700
    wait_for(lambda: "A700" in str(tries(journal, answered)[1].error), "it is refused")
    pacs.answers[uid.Comprehensive3DSRStorage] = 0x0000
    wait_for(in_state(journal, answered, State.sent), "it is sent")
    pacs.close()
    assert [each.error for each in tries(journal, answered)] == [None, None]
    # The picture came once: what has been stored is not sent again.
    assert len(pacs.stored) == 2


def test_a_clock_that_jumps_keeps_nothing_back(
    sender: Callable[..., Sender], journal: Journal, answered: bytes, nobody: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One failed try with the clock a year ahead, and then it jumps back."""
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 365 * 86400)
        sender(nobody)
        wait_for(lambda: tries(journal, answered)[0].attempts >= 1, "it has been tried")
    pacs = Pacs(nobody, **BOTH)
    wait_for(in_state(journal, answered, State.sent), "it is sent")
    pacs.close()


def test_a_pacs_that_does_not_know_us_is_tried_again(
    sender: Callable[..., Sender], journal: Journal, answered: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pacs = Pacs(**BOTH)
    sender(pacs.port, "ANOTHER")
    wait_for(lambda: tries(journal, answered)[0].error is not None, "it is refused")
    pacs.close()
    assert "refuses to talk to us" in str(tries(journal, answered)[0].error)
    assert find(journal, answered).state is State.answered
    # It is told at the start, and not only when there is something to send.
    assert "PACS: the PACS refuses to talk to us" in caplog.text


@pytest.mark.parametrize(
    ("answers", "why", "stored", "state"),
    [
        ({"SecondaryCaptureImageStorage": 0x0000}, "the PACS takes no reports", 1, State.sent),
        (BOTH | {"Comprehensive3DSRStorage": 0xC001}, "C001, 'no ... here'", 1, State.sent),
        (BOTH | {"SecondaryCaptureImageStorage": 0xA900}, "A900", 1, State.sent),
        (dict.fromkeys(BOTH, 0xC001), "C001", 0, State.failed),
    ],
)
def test_what_a_pacs_refuses_for_good_is_told_and_the_rest_arrives(
    sender: Callable[..., Sender],
    journal: Journal,
    answered: bytes,
    answers: dict[str, int],
    why: str,
    stored: int,
    state: State,
) -> None:
    pacs = Pacs(**answers)
    pacs.comment = "no PHANTOM-7 here"
    sender(pacs.port)
    wait_for(in_state(journal, answered, state), "it has been tried")
    pacs.close()
    assert why in " ".join(str(each.error) for each in tries(journal, answered))
    assert len(pacs.stored) == stored


@pytest.mark.parametrize("kind", ["EnhancedSRStorage", "ComprehensiveSRStorage", "BasicTextSRStorage"])
def test_a_pacs_without_the_best_reports_gets_those_that_it_takes(
    sender: Callable[..., Sender], journal: Journal, answered: bytes, kind: str
) -> None:
    pacs = Pacs(**{"SecondaryCaptureImageStorage": 0x0000, kind: 0x0000})
    sender(pacs.port)
    wait_for(in_state(journal, answered, State.sent), "it is sent")
    pacs.close()
    assert {ds.SOPClassUID for ds in pacs.stored} == {uid.SecondaryCaptureImageStorage, getattr(uid, kind)}


@pytest.mark.parametrize("taken", REPORTS[1:])
def test_a_dicomweb_server_without_the_best_reports_gets_those_that_it_takes(
    taken: str, classifier: Classifier, film: bytes
) -> None:
    report = Answer(read_header(film), classifier.predict(film, "film"), classifier, DEVICE).report()
    came: list[str] = []

    class Pacs(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            (sent,) = stow.split(body, self.headers["Content-Type"])
            came.append(dataset(sent).SOPClassUID)
            failed = [] if came[-1] == taken else [(came[-1], "1.2.3", 0x0122)]
            told = json.dumps(stow.response([], failed)).encode()
            self.send_response(409 if failed else 200)
            self.send_header("Content-Length", str(len(told)))
            self.end_headers()
            self.wfile.write(told)

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Pacs) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        link = make_link(parse_destination(f"http://127.0.0.1:{server.server_address[1]}", ("sr",)), "PNEUMO")
        assert link.send("sr", report) is None
        server.shutdown()
        thread.join()
    assert came == list(REPORTS[: REPORTS.index(taken) + 1])


def test_a_pacs_that_hangs_does_not_keep_it_from_ending(
    sender: Callable[..., Sender], journal: Journal, answered: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Longer than any test: what ends then was cut.
    monkeypatch.setattr("pneumo_edge.serve.peers._ANSWER", 86400.0)
    pacs = Pacs(**BOTH)
    pacs.hangs.set()
    made = sender(pacs.port)
    wait_for(pacs.asked.is_set, "it is asked")
    made.stop()
    assert not made._thread.is_alive()
    pacs.hangs.clear()
    pacs.close()
    assert find(journal, answered).state is State.answered


@pytest.mark.parametrize("status", [0xB000, 0xB007, 0x0111])
def test_stored_with_a_remark_is_stored(
    sender: Callable[..., Sender], journal: Journal, answered: bytes, status: int
) -> None:
    pacs = Pacs(SecondaryCaptureImageStorage=status, Comprehensive3DSRStorage=status)
    sender(pacs.port)
    wait_for(in_state(journal, answered, State.sent), "it is sent")
    pacs.close()


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("PACS@127.0.0.1:104", Peer("PACS", "127.0.0.1", 104)),
        ("My PACS@pacs.example:11112", Peer("My PACS", "pacs.example", 11112)),
        ("A@[::1]:4242", Peer("A", "::1", 4242)),
        ("tls:PACS@127.0.0.1:2762", Peer("PACS", "127.0.0.1", 2762, tls=True)),
    ],
)
def test_a_peer_is_read(text: str, peer: Peer) -> None:
    assert parse_peer(text) == peer


def test_a_destination_may_say_what_it_gets() -> None:
    peer = Peer("PACS", "127.0.0.1", 104)
    for text, objects in (("", ("sc", "sr")), ("=sc", ("sc",)), ("=sr,sc", ("sr", "sc"))):
        found = parse_destination(f"PACS@127.0.0.1:104{text}", ("sc", "sr"))
        assert found == Destination("PACS@127.0.0.1:104", objects, peer)
    url = "https://pacs.example/dicom-web"
    assert parse_destination(f"{url}=sr", ("sc",)) == Destination(url, ("sr",), Server(url))
    for wrong in ("PACS@127.0.0.1:104=pr", "https://user:secret@host/x", "http://", "https://host/x?a=b"):
        with pytest.raises(UsageError) as refused:
            parse_destination(wrong, ("sc",))
        assert "--send-to" in str(refused.value) or "choice of objects" in str(refused.value)


@pytest.mark.parametrize(
    "text", ["", "PACS", "PACS@host", "@host:1", "A@:1", "A@h:0", "A@h:65536", "A" * 17 + "@h:1", "A@B@h:1"]
)
def test_what_is_no_peer_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_peer(text)


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_ends_in_good_order_with_an_association_open(
    tmp_path: Path, bundle: Path, film: bytes, nobody: int
) -> None:
    with Service(tmp_path / "spool", "--model", bundle, "--send-to", f"PACS@127.0.0.1:{nobody}") as service:
        association = call(service.port)
        assert association.send_c_store(dataset(film)).Status == 0x0000
        assert service.stop(signal.SIGTERM) == 0
        wait_for(lambda: association.is_aborted, "it is aborted")
        service.start()
        assert service.stop(signal.SIGINT) == 130
    assert "Traceback" not in service.log
    assert not [secret for secret in (*SECRETS, uid_of(film)) if secret in service.log]


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--dicom-port", "0", "--send-to", "A@h:1", "--send-to", "A@h:1=sc"], "is there twice"),
        (["--answer", "pdf"], "choice of objects"),
        (["--min-age", "9", "--max-age", "8"], "turn the ages round"),
        (["--other-parts", "hide"], "give one of judge, reason, ignore"),
        (["--show", "name"], "give one of accession, patient-id"),
        (["--tls-key", "key.pem"], "--tls-certificate"),
        (["--allow", "CT"], "give --dicom-port"),
        (["--dicom-port", "0", "--send-to", "nonsense"], "AET@HOST:PORT"),
        (["--dicom-port", "0", "--ae-title", "A" * 17], "AE title"),
        (["--dicom-port", "0", "--allow", "A,,B"], "AE title"),
    ],
)
def test_options_that_make_no_sense_are_named(
    serve_command: Callable[..., list[str | Path]], tmp_path: Path, options: list[str], why: str
) -> None:
    line = serve_command("--port", "0", "--spool", tmp_path / "spool", *options)
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert why in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_another_host_needs_an_allow_list(serve_command: Callable[..., list[str | Path]], tmp_path: Path) -> None:
    (tmp_path / "token").write_text("0123456789abcdef0123456789abcdef")
    (tmp_path / "token").chmod(0o600)
    line = serve_command("--host", "0.0.0.0", "--token-file", tmp_path / "token", "--dicom-port", "0")  # noqa: S104
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "--allow" in done.stderr


# -------------------------------------------------------------------------------------------------------- conformance

STATEMENT = ROOT / "docs" / "dicom-conformance.md"


def test_the_conformance_statement_is_that_of_the_code() -> None:
    from pneumo_edge.serve.conformance import statement

    how = "python -m pneumo_edge.serve.conformance > docs/dicom-conformance.md"
    assert STATEMENT.read_text(encoding="utf-8") == statement(), how


def test_what_the_statement_says_is_what_a_peer_sees(
    node: Callable[..., Node], sender: Callable[..., Sender], journal: Journal, answered: bytes
) -> None:
    """The contexts and names that go over the wire, against those that the document lists."""
    said = STATEMENT.read_text(encoding="utf-8")
    association = call(node().port)
    seen = association.acceptor
    assert f"`{seen.implementation_class_uid}`" in said
    assert f"`{str(seen.implementation_version_name).strip()}`" in said
    assert f"{seen.maximum_length:,} bytes" in said
    association.release()
    pacs = Pacs(**BOTH)
    sender(pacs.port)
    wait_for(in_state(journal, answered, State.sent), "it is sent")
    pacs.close()
    assert {str(context.abstract_syntax) for context in pacs.requested} == {
        line.split("`")[1]
        for line in said.splitlines()
        if line.endswith("| Explicit VR Little Endian, Implicit VR Little Endian |")
    }
    assert {syntax for context in pacs.requested for syntax in context.transfer_syntax} == {
        uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian
    }  # fmt: skip
    of_the_film = (*WHOSE, *OF_THE_PIXELS)
    tags = {f"| {element.tag} |" for ds in pacs.stored for element in ds if element.keyword not in of_the_film}
    assert [tag for tag in tags if tag not in said] == []
