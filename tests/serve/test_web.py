"""The HTTP interface of pneumo-serve: the installed command where a user would use it, the application where limits
must be small."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from places import ROOT
from pneumo_edge import Classifier, __version__
from pneumo_edge.bundle import Reference, read_bundle, write_description
from pneumo_edge.command_line import NOT_A_DIAGNOSIS

httpx = pytest.importorskip("httpx", reason="the tests of pneumo-serve need the extra dev")
pytest.importorskip("fastapi", reason="pneumo-serve needs the extra serve")

import uvicorn  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from pneumo_edge.errors import UsageError  # noqa: E402
from pneumo_edge.serve import stow  # noqa: E402
from pneumo_edge.serve.cli import Token, _listen, _read_token  # noqa: E402
from pneumo_edge.serve.connection import Connection  # noqa: E402
from pneumo_edge.serve.inbox import Inbox, Limits  # noqa: E402
from pneumo_edge.serve.journal import Journal, State  # noqa: E402
from pneumo_edge.serve.judge import Judge, remember  # noqa: E402
from pneumo_edge.serve.rules import Rules  # noqa: E402
from pneumo_edge.serve.spool import FILM, REPORT, Spool  # noqa: E402
from pneumo_edge.serve.web import make_app  # noqa: E402
from pneumo_edge.watch import Watch  # noqa: E402

Infer = Callable[..., "subprocess.CompletedProcess[Any]"]
Command = Callable[..., list[str | Path]]
Serve = Callable[..., Any]

TOKEN = "0123456789abcdef"  # noqa: S105 - of the tests
NAME = "Doe^Jane_1987.png"
"""A file name as it must never be in a log."""


def film(mean: int = 150, format: str = "PNG", size: tuple[int, int] = (128, 160)) -> bytes:
    """A grey picture that the tiny model calls PNEUMONIA if `mean` is 112 or more."""
    grey = np.full(size, mean - 24, np.uint8)
    grey[:, size[1] // 2 :] = mean + 24
    file = io.BytesIO()
    Image.fromarray(grey).save(file, format=format)
    return file.getvalue()


RED = io.BytesIO()
Image.new("RGB", (128, 128), (200, 30, 30)).save(RED, format="PNG")

PICTURES = {
    "pneumonia.png": film(150),
    "normal.jpeg": film(60, "JPEG"),
    "withheld.png": RED.getvalue(),
    "film of 3 Ω.tif": film(170, "TIFF"),
    "damaged.png": film()[:90],
    "text.png": b"no picture",
    "empty.png": b"",
}


@pytest.fixture
def classifier(bundle: Path) -> Iterator[Classifier]:
    with Classifier.load(bundle) as loaded:
        yield loaded


@pytest.fixture
def parts(classifier: Classifier, tmp_path: Path) -> Iterator[tuple[Classifier, Inbox]]:
    spool = Spool(tmp_path / "spool")
    journal = Journal(spool.journal)
    yield classifier, Inbox(journal, spool)
    journal.close()
    spool.close()


def limited(parts: Any, limits: Limits) -> tuple[Classifier, Inbox]:
    classifier, inbox = parts
    return classifier, Inbox(inbox.journal, inbox.spool, limits)


def token() -> str:
    return TOKEN


@asynccontextmanager
async def client(app: Any, **headers: str) -> AsyncIterator[Any]:
    """Asks an application without a server in between."""
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost:8000", headers=headers) as asking:
        yield asking


def answered(asking: Any, key: str) -> dict[str, Any]:
    """Waits until a film has been judged."""
    deadline = time.monotonic() + 600
    while True:
        told: dict[str, Any] = asking.get(f"/v1/films/{key}").json()
        if told["state"] != "received":
            return told
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --------------------------------------------------------------------------------------------------- the command


def test_help_needs_no_extra_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; sys.modules['fastapi'] = None; from pneumo_edge.serve.cli import main\n"
        "try: main()\n"
        "except SystemExit as end:\n"
        "    print(sorted({'numpy', 'PIL', 'onnxruntime', 'uvicorn', 'pydantic', 'pynetdicom'} & set(sys.modules)))\n"
        "    sys.exit(end.code)"
    )
    helped = subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True, text=True, check=True)
    assert "--token-file" in helped.stdout
    assert helped.stdout.endswith("[]\n")
    refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert refused.stderr == "pneumo-serve: pneumo-serve needs the package fastapi: pip install 'pneumo[serve]'\n"
    assert refused.returncode == 2


@pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")
@pytest.mark.parametrize(
    ("content", "mode", "words"),
    [
        (None, 0o600, "cannot be read"),
        ("", 0o600, "is empty"),
        ("\n", 0o600, "is empty"),
        ("0123456789abcde\n", 0o600, "is short"),
        (TOKEN, 0o644, "everybody on this machine"),
        (TOKEN, 0o602, "everybody on this machine"),
        ("0123456789 abcdef", 0o600, "cannot be sent"),
        ("0123456789abcdeé", 0o600, "cannot be sent"),
    ],
)
def test_a_token_file_that_protects_nothing_is_refused(
    content: str | None, mode: int, words: str, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_text(content, encoding="utf-8")
        file.chmod(mode)
    with pytest.raises(UsageError, match=words) as refused:
        _read_token(file)
    assert TOKEN not in str(refused.value)


@pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")
def test_another_token_in_the_file_is_the_token(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    current = Token(file)
    assert current() == TOKEN
    (tmp_path / "new").write_text("fedcba9876543210\n")
    (tmp_path / "new").chmod(0o600)
    (tmp_path / "new").replace(file)
    assert current() == "fedcba9876543210"
    file.write_text("short")
    assert current() == "fedcba9876543210"
    file.unlink()
    assert current() == "fedcba9876543210"
    assert "is short" in caplog.text
    assert "fedcba" not in caplog.text


@pytest.mark.parametrize("host", ["0.0.0.0", "example.invalid"])  # noqa: S104
def test_another_host_needs_a_token(host: str, serve_command: Command, tmp_path: Path) -> None:
    refused = subprocess.run(
        serve_command("--port", "0", "--spool", tmp_path / "spool", "--host", host),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert refused.returncode == 2
    assert re.fullmatch("pneumo-serve: .* can be reached from other machines: give --token-file.*\n", refused.stderr)


def test_a_port_in_use_is_said_in_a_sentence(serve_command: Command, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = subprocess.run(
            serve_command("--port", str(taken.getsockname()[1]), "--spool", tmp_path / "spool"),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
    # systemd tries again where it is not 2: that program may end.
    assert refused.returncode == 1
    assert re.fullmatch(
        r"pneumo-serve: cannot listen for the page on 127\.0\.0\.1, port \d+: .* or give another --port\n",
        refused.stderr,
    )


@pytest.mark.parametrize("option", ["--host", "--dicom-host"])
def test_an_address_that_is_not_there_yet_may_come(option: str, serve_command: Command, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    more = ["--token-file", tmp_path / "token", "--dicom-port", "0", "--allow", "A"]
    refused = subprocess.run(
        serve_command("--port", "0", "--spool", tmp_path / "spool", option, "192.0.2.1", *more),
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert f"no such address, or not yet: wait for the network, or give another {option}\n" in refused.stderr


@pytest.mark.skipif(not Path("/sys/fs").exists(), reason="a small disk is made with Linux's tmpfs")
def test_a_full_disk_is_called_by_its_name(serve_command: Command, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], check=False).returncode != 0:
        pytest.skip("a small disk is mounted by root alone")
    try:
        with (disk / "filled").open("wb", buffering=0) as filled, suppress(OSError):
            while True:
                filled.write(bytes(4096))
        refused = subprocess.run(
            serve_command("--port", "0", "--spool", disk / "spool"),
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        assert refused.returncode == 1
        assert "make room" in refused.stderr
        assert "in use" not in refused.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


def test_answers_are_not_held_back() -> None:
    """Nagle's algorithm and delayed acknowledgements would add 40 ms to each."""
    with _listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")
def test_it_ends_in_good_order(serve: Serve) -> None:
    service = serve()
    assert httpx.get(f"{service.address}/healthz", timeout=60).json() == {"status": "ok"}
    assert service.stop(signal.SIGINT) == 130
    assert service.log.startswith(f"{NOT_A_DIAGNOSIS}\npage and HTTP: http://127.0.0.1:")
    assert "Traceback" not in service.log


def test_the_answer_is_the_record_of_pneumo_infer(serve: Serve, infer: Infer, tmp_path: Path) -> None:
    for name, data in PICTURES.items():
        (tmp_path / name).write_bytes(data)
    printed = infer(*PICTURES, "--format", "json", "--threads", "1", cwd=tmp_path).stdout.splitlines()
    with httpx.Client(base_url=serve().address, timeout=60) as asking:
        for (name, data), line in zip(PICTURES.items(), printed, strict=True):
            record = json.loads(line)
            form = asking.post("/v1/predict", files={"file": (name, data)})
            bare = asking.post("/v1/predict", content=data)
            assert form.status_code == bare.status_code == (422 if "error" in record else 200)
            if "error" not in record:
                assert list(form.json()) == list(record)
                assert form.json().pop("milliseconds").keys() == record.pop("milliseconds").keys()
                # The very text, but for the times: that of numbers too.
                text = json.dumps(record)[:-1]
                assert form.text.startswith(text)
                assert bare.json() | {"path": name, "milliseconds": 0} == record | {"milliseconds": 0}
            else:
                assert form.json() == record
                assert bare.json() == {"path": "-", "error": record["error"].replace(name, "-")}


def test_the_record_of_a_dicom_film(serve: Serve, infer: Infer, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")
    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", "1.2.3"
    ds.Modality, ds.PatientName, ds.BodyPartExamined = "CR", "Doe^Jane", "HAND"
    ds.PhotometricInterpretation, ds.Rows, ds.Columns, ds.SamplesPerPixel = "MONOCHROME2", 128, 160, 1
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 8, 8, 7, 0
    with Image.open(io.BytesIO(film())) as picture:
        ds.PixelData = picture.tobytes()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    pydicom.dcmwrite(tmp_path / "film.dcm", ds, enforce_file_format=True)
    record = json.loads(infer("film.dcm", "--format", "json", cwd=tmp_path).stdout)
    service = serve()
    data = (tmp_path / "film.dcm").read_bytes()
    with httpx.Client(base_url=service.address, timeout=60) as asking:
        answer = asking.post("/v1/predict", files={"file": ("film.dcm", data)}).json()
        assert answer | {"milliseconds": 0} == record | {"milliseconds": 0}
        assert "HAND" in " ".join(answer["warnings"])
        key = asking.post("/v1/films", content=data).json()["key"]
        assert answered(asking, key)["record"]["warnings"] == answer["warnings"]
    assert "Doe" not in service.log


def test_a_film_is_kept_judged_and_listed(serve: Serve, tmp_path: Path) -> None:
    service = serve()
    with httpx.Client(base_url=service.address, timeout=60) as asking:
        assert asking.get("/v1/films").json() == {"films": [], "total": 0}
        before = datetime.now(UTC)
        handed = asking.post("/v1/films", files={"file": (NAME, film())})
        entry = handed.json()
        assert handed.status_code == 202
        assert handed.headers["location"] == f"/v1/films/{entry['key']}"
        assert abs((datetime.fromisoformat(entry["received"]) - before).total_seconds()) < 60
        told = answered(asking, entry["key"])
        assert (told["state"], told["label"], told["source"]) == ("answered", "PNEUMONIA", "page")
        assert told["record"] == asking.post("/v1/predict", content=film()).json() | {
            "path": f"film {entry['key'][:8]}", "milliseconds": told["record"]["milliseconds"]
        }  # fmt: skip
        pictures = [asking.get(f"/v1/films/{entry['key']}/{name}.png") for name in ("film", "heatmap")]
        assert {picture.headers["content-type"] for picture in pictures} == {"image/png"}
        with Image.open(io.BytesIO(pictures[0].content)) as shown, Image.open(io.BytesIO(pictures[1].content)) as heat:
            assert shown.size == heat.size
            assert heat.mode == "RGBA"
        # As a proxy on this machine hands it on.
        asking.get("/v1/model", headers={"X-Forwarded-For": "203.0.113.9"})
        broken = asking.post("/v1/films", content=PICTURES["damaged.png"]).json()["key"]
        failed = answered(asking, broken)
        assert failed["state"] == "failed"
        assert failed["record"] is None
        assert "damaged" in failed["error"]
        assert asking.get(f"/v1/films/{broken}/film.png").status_code == 404
        listed = asking.get("/v1/films").json()["films"]
        assert [each["key"] for each in listed] == [broken, entry["key"]]
        assert listed[0] == {name: value for name, value in failed.items() if name != "record"}
        assert len(asking.get("/v1/films", params={"limit": 1}).json()["films"]) == 1
        refused = asking.post("/v1/films", files={"file": ("text.png", b"no picture")})
        assert refused.status_code == 422
        assert refused.json() == {"path": "text.png", "error": "text.png is no film: use PNG, JPEG or DICOM"}
        for url in (
            f"/v1/films/{'0' * 32}",
            f"/v1/films/{'0' * 32}/film.png",
            "/v1/films/..%2F..%2Fetc",
            "/v1/none",
            "/docs",
        ):
            assert asking.get(url).status_code == 404
        for url in ("/v1/films/0", "/v1/films/0%00", "/v1/films?limit=0", "/v1/films?limit=x", "/v1/films?sort=name"):
            assert asking.get(url).status_code == 422
        assert (tmp_path / "spool" / "films" / entry["key"] / FILM).read_bytes() == film()
    # What is on disk and in the log must not tell whose film it is.
    assert "Doe" not in service.log
    assert entry["key"] not in service.log
    lines = service.log.splitlines()
    assert sum(line.endswith(" ms") and " 127.0.0.1 POST /v1/films 202 " in line for line in lines) == 2
    assert any(" GET /v1/films/{key} 200 " in line for line in lines)
    assert any(" GET none 404 " in line for line in lines)
    assert any(" 203.0.113.9 GET /v1/model 200 " in line for line in lines)
    # Pages ask for the list all the time.
    assert not any(" GET /v1/films 200 " in line for line in lines)


@pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")
def test_with_a_token_nothing_is_told_without_it(serve: Serve, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    service = serve("--token-file", file, "--host", "0.0.0.0")  # noqa: S104
    address = service.address.replace("0.0.0.0", "127.0.0.1")  # noqa: S104
    guarded = [
        "/v1/films",
        "/v1/model",
        "/v1/watch",
        f"/v1/films/{'0' * 32}",
        f"/v1/films/{'0' * 32}/film.png",
        "/metrics",
    ]
    wrong = [{}, *({"Authorization": f"Bearer {token}"} for token in ("x", TOKEN[:-1], TOKEN + "0", "é" * 16))]
    wrong += [{"Authorization": TOKEN}, {"Authorization": f"Basic {TOKEN}"}]
    # Behind another name, as a reverse proxy has it.
    with httpx.Client(base_url=address, timeout=60, headers={"Host": "films.clinic.example"}) as asking:
        for headers in wrong:
            encoded = {name: value.encode() for name, value in headers.items()}
            refused = [asking.get(url, headers=encoded) for url in guarded]
            refused += [asking.post(url, content=film(), headers=encoded) for url in ("/v1/predict", "/v1/films")]
            assert {answer.status_code for answer in refused} == {401}
            assert {answer.headers["www-authenticate"] for answer in refused} == {"Bearer"}
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert [asking.get(url, headers=right).status_code for url in guarded] == [200, 200, 200, 404, 404, 200]
        assert asking.post("/v1/predict", content=film(), headers=right).json()["label"] == "PNEUMONIA"
        assert {asking.get(url).status_code for url in ("/", "/page.js", "/page.css", "/healthz")} == {200}
        scheme = asking.get("/openapi.json").json()
        assert scheme["paths"]["/v1/predict"]["post"]["security"] == [{"HTTPBearer": []}]
        assert "security" not in scheme["paths"]["/healthz"]["get"]
        # Another token is put in its place while it runs.
        file.write_text(f"another-{TOKEN}\n")
        another = {"Authorization": f"Bearer another-{TOKEN}"}
        assert [asking.get("/v1/model", headers=headers).status_code for headers in (right, another)] == [401, 200]
    assert TOKEN not in service.log


def test_model_and_metrics(serve: Serve, bundle: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families as parse

    with httpx.Client(base_url=serve().address, timeout=60) as asking:
        model = asking.get("/v1/model").json()
        described = json.loads((bundle / "model.json").read_text())
        assert model["operating_points"] == described["operating_points"]
        assert model["sha256"] == described["files"]["model.onnx"]["sha256"]
        assert (model["name"], model["file"], model["version"]) == ("tiny", "model.onnx", __version__)
        assert model["note"] == NOT_A_DIAGNOSIS
        answered(asking, asking.post("/v1/films", content=film()).json()["key"])
        asking.post("/v1/predict", content=film())
        asking.post("/v1/predict", files={"file": (NAME, b"no picture")})
        asking.request("JOHN_DOE", "/v1/predict/Doe")
        text = asking.get("/metrics").text
    assert "Doe" not in text
    assert "JOHN" not in text
    samples = {
        (sample.name, *sample.labels.values()): sample.value for family in parse(text) for sample in family.samples
    }
    assert samples["pneumo_films", "answered"] == 1
    assert samples["pneumo_films", "received"] == 0
    assert samples["pneumo_http_requests_total", "POST", "/v1/predict", "200"] == 1
    assert samples["pneumo_http_requests_total", "POST", "/v1/predict", "422"] == 1
    assert samples["pneumo_http_requests_total", "OTHER", "none", "404"] == 1
    assert samples["pneumo_http_request_seconds_count", "/v1/predict"] == 2
    assert ("pneumo_model_info", "model.onnx", "tiny", __version__) in samples
    assert samples[("pneumo_disk_free_bytes",)] > 0
    assert samples[("pneumo_oldest_unanswered_seconds",)] == 0


def test_the_operating_point_and_the_prevalence_of_the_place(serve: Serve) -> None:
    with httpx.Client(
        base_url=serve("--operating-point", "screening", "--prevalence", "0.1").address, timeout=60
    ) as asking:
        record = asking.post("/v1/predict", content=film()).json()
        model = asking.get("/v1/model").json()
    assert (record["operating_point"], model["operating_point"], model["prevalence"]) == ("screening", "screening", 0.1)
    assert model["operating_points"]["screening"]["threshold"] == pytest.approx(record["threshold"])
    # The tiny model is calibrated at 75 %, its threshold there is 0.2.
    assert record["threshold"] == pytest.approx(0.25 / 27 / (1 + 0.25 / 27))


def test_films_that_change_are_noticed(serve: Serve, write_bundle: Any) -> None:
    """Films as the reference has them, then others: told on the page's address, to Prometheus and in the log."""
    from prometheus_client.parser import text_string_to_metric_families as parse

    # Of `film(mean)`: logit and novelty follow from the mean; all have one contrast, which is not compared.
    logits = np.linspace(-0.56, 0.68, 101)
    reference = Reference(400, tuple(logits.tolist()), tuple(np.sort(np.abs(logits) / 2).tolist()))
    watched = write_bundle()
    description = read_bundle(watched).description
    file = replace(description.files["model.onnx"], reference=reference)
    write_description(watched, replace(description, files={"model.onnx": file}))
    service = serve("--model", watched)
    with httpx.Client(base_url=service.address, timeout=60) as asking:
        before = asking.get("/v1/watch").json()
        assert (before["known"], before["films"], before["shifts"], before["alarms"]) == (True, 0, {}, [])
        for i in range(60):
            # A pixel more each time: no two films are the same bytes.
            asking.post("/v1/predict", content=film(110 + i % 40, size=(128, 160 + 2 * i)))
        same = asking.get("/v1/watch").json()
        assert (same["films"], same["alarms"]) == (60, [])
        assert same["withheld"] == 0
        for i in range(60):
            asking.post("/v1/predict", content=film(230, size=(130, 160 + 2 * i)))
        changed = asking.get("/v1/watch").json()
        text = asking.get("/metrics").text
        # The same film once more is no other film.
        asking.post("/v1/predict", content=film(230, size=(130, 160)))
        assert asking.get("/v1/watch").json()["films"] == 120
    assert "score" in changed["alarms"]
    assert changed["shifts"]["score"]["distance"] > changed["shifts"]["score"]["limit"]
    samples = {
        (sample.name, *sample.labels.values()): sample.value for family in parse(text) for sample in family.samples
    }
    assert samples["pneumo_shift_alarm", "score"] == 1
    assert samples[("pneumo_watched_films",)] == 120
    assert samples[("pneumo_pneumonia_share_expected",)] == pytest.approx(changed["expected"])
    assert service.log.count("THE FILMS HAVE CHANGED") == 1


def test_the_last_films_are_remembered_over_a_restart(parts: Any) -> None:
    classifier, inbox = parts
    judge = Judge(classifier, inbox)
    judge.start()
    keys = [inbox.take(film(100 + 10 * i)).key for i in range(4)] + [inbox.take(RED.getvalue()).key]
    deadline = time.monotonic() + 60
    while any(inbox.journal.find(key).state is State.received for key in keys):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    judge.stop()
    reference = Reference(10, *[tuple(np.linspace(0, 1, 101).tolist())] * 3)
    description = classifier.bundle.description
    point = description.operating_points["balanced"]
    file = replace(description.files["model.onnx"], reference=reference)
    outlook = remember(Watch(file, description.calibration, point), inbox).outlook()
    assert outlook is not None
    assert (outlook.films, outlook.withheld) == (5, 0.2)


# ------------------------------------------------------------------------------------------------------- the gate


HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
}


def test_every_answer_bears_the_headers(parts: Any) -> None:
    async def ask() -> None:
        async with client(make_app(*parts)) as asking:
            for url in ("/", "/page.js", "/icon.svg", "/v1/films", "/v1/none", "/openapi.json", "/metrics"):
                assert HEADERS.items() <= dict((await asking.get(url)).headers).items()
            refused = await asking.post("/v1/predict", headers={"Sec-Fetch-Site": "cross-site"})
            assert HEADERS.items() <= dict(refused.headers).items()
            assert (await asking.head("/")).status_code == 200

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LOCALHOST:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.0.0.53", 200),
        ("[::1]:8000", 200),
        ("attacker.example", 421),
        ("localhost.attacker.example", 421),
        ("127.0.0.1.attacker.example:8000", 421),
        ("localhost@attacker.example", 421),
        ("192.168.1.20:8000", 421),
        ("0.0.0.0", 421),  # noqa: S104
        ("[::1", 421),
        ("[::1]x", 421),
        ("", 421),
    ],
)
def test_without_a_token_only_this_machines_names_are_answered(host: str, status: int, parts: Any) -> None:
    async def ask() -> None:
        async with client(make_app(*parts)) as asking:
            for url in ("/", "/v1/films", "/healthz", "/openapi.json"):
                assert (await asking.get(url, headers={"Host": host})).status_code == status
        async with client(make_app(*parts, token=token)) as asking:
            assert (await asking.get("/healthz", headers={"Host": host})).status_code == 200

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("headers", "read", "write"),
    [
        ({}, 200, 422),
        ({"Sec-Fetch-Site": "same-origin"}, 200, 422),
        ({"Sec-Fetch-Site": "none", "Sec-Fetch-Mode": "navigate"}, 200, 422),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200, 403),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403, 403),
        ({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "cors"}, 403, 403),
        ({"Origin": "http://localhost:8000"}, 200, 422),
        ({"Origin": "https://localhost:8000"}, 200, 422),
        ({"Origin": "http://localhost:3000"}, 403, 403),
        ({"Origin": "https://attacker.example"}, 403, 403),
        ({"Origin": "null"}, 403, 403),
    ],
)
def test_pages_of_other_sites_are_refused(headers: dict[str, str], read: int, write: int, parts: Any) -> None:
    async def ask() -> None:
        async with client(make_app(*parts)) as asking:
            assert (await asking.get("/v1/films", headers=headers)).status_code == read
            assert (await asking.post("/v1/films", content=b"no film", headers=headers)).status_code == write

    asyncio.run(ask())


def test_an_unforeseen_error_is_told_without_its_words(parts: Any, caplog: pytest.LogCaptureFixture) -> None:
    classifier, inbox = parts
    inbox.journal.close()

    async def ask() -> None:
        async with client(make_app(classifier, inbox)) as asking:
            answer = await asking.get("/v1/films")
            assert answer.status_code == 500
            assert answer.json() == {"error": "something went wrong here: the log says where"}
            assert HEADERS.items() <= dict(answer.headers).items()
            assert (await asking.get("/healthz")).status_code == 503

    with caplog.at_level(logging.INFO):
        asyncio.run(ask())
    [error] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert re.fullmatch(r"ProgrammingError in journal\.py, line \d+", error)
    assert not any(record.exc_info for record in caplog.records)


# ----------------------------------------------------------------------------------------------------- the limits


def test_a_film_that_is_too_large_is_refused(parts: Any) -> None:
    sent = 0

    async def endless(head: bytes = b"") -> AsyncIterator[bytes]:
        nonlocal sent
        yield head
        while True:
            sent += 1000
            yield bytes(1000)

    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'

    async def ask() -> None:
        async with client(make_app(*limited(parts, Limits(body=100_000)))) as asking:
            for url in ("/v1/predict", "/v1/films"):
                for answer in (
                    await asking.post(url, content=bytes(100_001)),
                    await asking.post(url, files={"file": ("a.png", bytes(100_001))}),
                    await asking.post(url, content=endless()),
                    await asking.post(
                        url, content=endless(part), headers={"Content-Type": "multipart/form-data; boundary=x"}
                    ),
                ):
                    assert answer.status_code == 413
                    assert "larger" in answer.json()["error"]
            assert (await asking.post("/v1/predict", content=film())).status_code == 200

    asyncio.run(ask())
    # Given up at the limit, and not at the end of what there is.
    assert sent < 8 * 110_000


def test_a_body_that_does_not_come_is_not_waited_for(parts: Any) -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield film()[:50]
        await asyncio.sleep(60)

    async def ask() -> None:
        async with client(make_app(*limited(parts, Limits(seconds=0.2)))) as asking:
            answer = await asking.post("/v1/predict", content=slow())
            assert answer.status_code == 408
            assert answer.headers["connection"] == "close"
            assert (await asking.post("/v1/predict", content=film())).status_code == 200

    asyncio.run(ask())


@pytest.mark.parametrize("limits", [Limits(waiting=1), Limits(held=len(film()) + 10)])
def test_more_than_the_device_can_take_is_told_to_come_again(limits: Limits, parts: Any) -> None:
    async def ask() -> None:
        begun, finish = asyncio.Event(), asyncio.Event()

        async def halting() -> AsyncIterator[bytes]:
            yield film()[:50]
            begun.set()
            await finish.wait()
            yield film()[50:]

        async with client(make_app(*limited(parts, limits))) as asking:
            first = asyncio.create_task(asking.post("/v1/predict", content=halting()))
            await begun.wait()
            for url in ("/v1/predict", "/v1/films"):
                busy = await asking.post(url, content=film())
                assert busy.status_code == 429
                assert int(busy.headers["retry-after"]) >= 1
            # What is no film is answered all the same.
            assert (await asking.get("/v1/films")).status_code == 200
            finish.set()
            assert (await first).status_code == 200
            # And now there is room again.
            assert (await asking.post("/v1/films", content=film())).status_code == 202

    asyncio.run(ask())


def test_films_are_not_taken_in_without_end(parts: Any) -> None:
    async def ask() -> list[int]:
        async with client(make_app(*limited(parts, Limits(queue=2)))) as asking:
            return [(await asking.post("/v1/films", content=film())).status_code for _ in range(3)]

    assert asyncio.run(ask()) == [202, 202, 429]


def test_a_full_disk_takes_no_film_and_says_so(parts: Any) -> None:
    async def ask() -> None:
        _, inbox = parts
        assert not inbox.is_full()
        async with client(make_app(*limited(parts, Limits(room=1 << 60)))) as asking:
            refused = await asking.post("/v1/films", content=film())
            assert (refused.status_code, refused.json()) == (507, {"error": "the disk is nearly full: make room"})
            health = await asking.get("/healthz")
            assert (health.status_code, "disk" in health.json()["error"]) == (503, True)
            # What keeps nothing needs no room.
            assert (await asking.post("/v1/predict", content=film())).status_code == 200
            assert (await asking.get("/v1/films")).json()["total"] == 0

    asyncio.run(ask())


def test_of_a_film_whose_row_cannot_be_written_nothing_is_left(parts: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, inbox = parts

    def full(*_: Any) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async def ask() -> None:
        async with client(make_app(*parts)) as asking:
            with monkeypatch.context() as patch:
                patch.setattr(inbox.journal, "add", full)
                assert (await asking.post("/v1/films", content=film())).status_code == 507
            assert list((inbox.spool.root / "films").iterdir()) == []
            assert (await asking.post("/v1/films", content=film())).status_code == 202

    asyncio.run(ask())


# ----------------------------------------------------------------------------------------------- the life of a film


def dicom(number: int = 7, **tags: Any) -> bytes:
    pytest.importorskip("pydicom", reason="DICOM needs the extra dicom")
    from pneumo_bench.serve import dicom_film

    row = np.array([80, 200], np.uint8).repeat(80)
    return dicom_film(row[np.newaxis].repeat(120, axis=0), number, **tags)


RECORD = {"label": "NORMAL", "probability": 0.25, "in_distribution": True}


def test_a_film_is_deleted_judged_again_and_sent_again(parts: Any) -> None:
    _, inbox = parts
    journal, spool = inbox.journal, inbox.spool
    send = {"PACS@h:1": ("sc", "sr"), "https://pacs.example": ("sr",)}

    async def ask() -> None:
        async with client(make_app(*parts, send=send)) as asking:
            key = (await asking.post("/v1/films", content=film())).json()["key"]
            early = await asking.post(f"/v1/films/{key}/resend")
            assert (early.status_code, "not been judged yet" in early.json()["error"]) == (409, True)
            journal.answered(journal.find(key), RECORD)
            assert (await asking.post(f"/v1/films/{key}/resend")).status_code == 409
            spool.write(key, {REPORT: b"report"})
            again = (await asking.post(f"/v1/films/{key}/resend")).json()
            assert [(each["destination"], each["object"], each["state"]) for each in again["sendings"]] == [
                ("PACS@h:1", "sr", "waiting"),
                ("https://pacs.example", "sr", "waiting"),
            ]
            [first, _] = journal.sendings([key])[key]
            journal.refused(first, "never")
            told = (await asking.get(f"/v1/films/{key}")).json()
            assert told["error"] == "PACS@h:1: never"
            judged = (await asking.post(f"/v1/films/{key}/rejudge")).json()
            assert (judged["state"], judged["label"], judged["sendings"]) == ("received", None, [])
            assert (await asking.delete(f"/v1/films/{key}")).status_code == 204
            assert not spool.path(key).parent.exists()
            for method, url in (("DELETE", ""), ("POST", "/rejudge"), ("POST", "/resend"), ("GET", "")):
                assert (await asking.request(method, f"/v1/films/{key}{url}")).status_code == 404

    asyncio.run(ask())


def test_metrics_tell_of_what_waits_and_of_what_failed_by_destination(
    parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, inbox = parts
    journal = inbox.journal

    async def ask() -> list[str]:
        async with client(make_app(*parts)) as asking:
            lines: list[str] = (await asking.get("/metrics")).text.splitlines()
            return lines

    entry, _ = journal.add("a" * 32, "dicom")
    monkeypatch.setattr(journal, "clock", lambda: entry.since + 700.0)
    told = asyncio.run(ask())
    assert "pneumo_oldest_unanswered_seconds 700.0" in told
    assert 'pneumo_films{state="received"} 1.0' in told
    journal.answered(entry, RECORD, [("PACS@h:1", "sc"), ("PACS@h:1", "sr"), ("https://pacs.example", "sr")])
    first, second = journal.waiting("PACS@h:1", 2)
    journal.not_sent(first, "it is away")
    journal.not_sent(first, "it is away")
    journal.refused(second, "it takes none")
    told = asyncio.run(ask())
    assert "pneumo_oldest_unanswered_seconds 0.0" in told
    assert 'pneumo_sendings{destination="PACS@h:1",state="waiting"} 1.0' in told
    assert 'pneumo_sendings{destination="PACS@h:1",state="refused"} 1.0' in told
    assert 'pneumo_sendings{destination="https://pacs.example",state="waiting"} 1.0' in told
    (failed,) = [line for line in told if line.startswith("pneumo_failed_sends_total{")]
    assert failed == 'pneumo_failed_sends_total{destination="PACS@h:1"} 3.0'
    (free,) = [line for line in told if line.startswith("pneumo_disk_free_bytes ")]
    assert float(free.split()[1]) > 0


def test_the_list_is_sorted_filtered_searched_and_turned_over(parts: Any) -> None:
    _, inbox = parts

    async def ask() -> None:
        async with client(make_app(*parts, show=["accession", "patient-id"])) as asking:
            keys = []
            for number, probability in enumerate((0.9, 0.1, 0.5)):
                key = (await asking.post("/v1/films", content=dicom(number))).json()["key"]
                label = "PNEUMONIA" if probability > 0.4 else "NORMAL"
                inbox.journal.answered(
                    inbox.journal.find(key), {"label": label, "probability": probability, "in_distribution": True}
                )
                keys.append(key)

            async def listed(query: str) -> list[int]:
                told = (await asking.get(f"/v1/films?{query}")).json()
                return [keys.index(each["key"]) for each in told["films"]]

            assert await listed("") == [2, 1, 0]
            assert await listed("limit=1&offset=1") == [1]
            assert await listed("sort=probability") == [0, 2, 1]
            assert await listed("sort=probability&order=asc&verdict=PNEUMONIA") == [2, 0]
            assert await listed("state=sent") == []
            assert await listed(f"search={keys[1][:8]}") == [1]
            assert await listed("search=phantom-2") == [2]
            assert await listed("search=a0") == [0] + [i for i in (2, 1) if keys[i].startswith("a0")]
            [one] = (await asking.get("/v1/films?search=phantom-2")).json()["films"]
            assert (one["accession"], one["patient_id"]) == ("A2", "PHANTOM-2")
        async with client(make_app(*parts)) as asking:
            told = (await asking.get("/v1/films")).json()
            assert {(each["accession"], each["patient_id"]) for each in told["films"]} == {(None, None)}
            assert (await asking.get("/v1/films?search=phantom-2")).json()["films"] == []

    asyncio.run(ask())


def test_the_rules_hold_for_films_over_http_too(parts: Any) -> None:
    async def ask() -> None:
        async with client(make_app(*parts, rules=Rules(min_age=10))) as asking:
            child = (await asking.post("/v1/predict", content=dicom(PatientAge="003Y"))).json()
            assert child["label"] is None
            assert child["warnings"][0] == "this device gives no verdict on patients younger than 10 years"
            assert (await asking.post("/v1/predict", content=dicom(PatientAge="013Y"))).json()["label"] == "PNEUMONIA"
            # What does not say how old the patient is is judged.
            assert (await asking.post("/v1/predict", content=film())).json()["label"] == "PNEUMONIA"

    asyncio.run(ask())


def test_films_are_looked_after_from_the_command_line(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(TOKEN)
    (tmp_path / "token").chmod(0o600)
    service = serve("--token-file", tmp_path / "token")
    with httpx.Client(base_url=service.address, timeout=60, headers={"Authorization": f"Bearer {TOKEN}"}) as asking:
        keys = [asking.post("/v1/films", content=film()).json()["key"] for _ in range(2)]
        for key in keys:
            answered(asking, key)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        at = ["--at", service.address, "--token-file", str(tmp_path / "token")]
        command = [str(Path(sys.executable).with_name("pneumo-serve")), "films", *arguments, *at]
        return subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)

    listed = run("list")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == keys[::-1]
    assert "page  answered  PNEUMONIA" in listed.stdout
    assert json.loads(run("list", "--json", "--limit", "1").stdout)["key"] == keys[1]
    assert json.loads(run("show", keys[0][:12]).stdout)["record"]["label"] == "PNEUMONIA"
    assert run("rejudge", keys[0]).stdout.split()[3] == "received"
    refused = run("resend", keys[1])
    assert (refused.returncode, refused.stderr) == (
        2, "pneumo-serve: there is nowhere to send it to: start with --send-to\n"
    )  # fmt: skip
    assert run("delete", *keys).stdout == "".join(f"{key}  deleted\n" for key in keys)
    assert run("list").stdout == ""
    missing = run("show", keys[0])
    assert (missing.returncode, missing.stderr) == (2, f"pneumo-serve: {keys[0]}: no film has a key that begins so\n")
    away = subprocess.run(
        [str(Path(sys.executable).with_name("pneumo-serve")), "films", "list", "--at", "http://127.0.0.1:9"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert away.returncode == 1
    assert "no pneumo-serve answers at" in away.stderr


# --------------------------------------------------------------------------------------------------------- STOW-RS


def test_films_are_stored_over_dicomweb(parts: Any) -> None:
    _, inbox = parts
    good, other = dicom(1), dicom(2)
    homeless = dicom(3, StudyInstanceUID=None)
    report = dicom(4, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.22")

    async def ask() -> None:
        async with client(make_app(*parts)) as asking:

            async def store(*films: bytes, **changes: str) -> Any:
                body, kind = stow.join(list(films))
                return await asking.post("/dicom-web/studies", content=body, headers={"Content-Type": kind} | changes)

            both = await store(good, other)
            assert (both.status_code, both.headers["content-type"]) == (200, "application/dicom+json")
            assert len(both.json()["00081199"]["Value"]) == 2
            assert "00081198" not in both.json()
            some = await store(good, homeless, report)
            assert some.status_code == 202
            assert [each["00081197"]["Value"] for each in some.json()["00081198"]["Value"]] == [[0xA900], [0x0122]]
            none = await store(homeless, b"garbage")
            assert none.status_code == 409
            assert (
                await asking.post("/dicom-web/studies", content=good, headers={"Content-Type": "application/dicom"})
            ).status_code == 200
            for kind in ("application/json", "multipart/related", "multipart/related; boundary=x"):
                assert (await store(good, **{"Content-Type": kind})).status_code == 400
            assert {entry.source for entry in inbox.journal.recent()} == {"dicomweb"}
            assert len(inbox.journal.recent()) == 2
        async with client(make_app(*limited(parts, Limits(room=1 << 60)))) as asking:
            body, kind = stow.join([dicom(5)])
            full = await asking.post("/dicom-web/studies", content=body, headers={"Content-Type": kind})
            assert full.status_code == 507

    asyncio.run(ask())


@settings(max_examples=200, deadline=None)
@given(files=st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_what_is_joined_is_split_again(files: list[bytes]) -> None:
    body, kind = stow.join(files)
    assert stow.split(body, kind) == files
    with pytest.raises(stow.MultipartError):
        stow.split(body[:-5], kind)


@settings(max_examples=200, deadline=None)
@given(body=st.binary(max_size=200), kind=st.text(max_size=80))
def test_a_wild_body_is_split_or_refused(body: bytes, kind: str) -> None:
    for content_type in (kind, f'multipart/related; type="application/dicom"; boundary={kind}'):
        try:
            assert all(part in body for part in stow.split(body, content_type))
        except stow.MultipartError as refused:
            assert str(refused)


def test_a_sender_that_goes_away_leaves_nothing_behind(parts: Any) -> None:
    """Raw ASGI: what uvicorn says when the line breaks."""

    async def ask() -> None:
        app = make_app(*limited(parts, Limits(waiting=1)))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": "/v1/films", "raw_path": b"/v1/films", "query_string": b"", "root_path": "",
            "headers": [(b"host", b"localhost")], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 8000),
        }  # fmt: skip
        for _ in range(3):
            messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])
            told: list[Any] = []

            async def receive(messages: Any = messages) -> Any:
                return next(messages)

            async def send(message: Any, told: list[Any] = told) -> None:
                told.append(message)

            await app(scope, receive, send)
            assert told[0]["status"] == 400
        async with client(app) as asking:
            assert (await asking.get("/v1/films")).json() == {"films": [], "total": 0}
            assert (await asking.post("/v1/films", content=film())).status_code == 202

    asyncio.run(ask())


class Hasty(Connection):
    patience = 1.0


def test_a_connection_that_asks_for_nothing_is_closed(parts: Any) -> None:
    server = uvicorn.Server(uvicorn.Config(make_app(*parts), http=Hasty, log_config=None, timeout_keep_alive=60))
    with socket.create_server(("127.0.0.1", 0)) as listening, ExitStack() as stack:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        stack.callback(thread.join)
        stack.callback(setattr, server, "should_exit", True)

        def send(data: bytes) -> socket.socket:
            line = stack.enter_context(socket.create_connection(listening.getsockname(), timeout=60))
            line.sendall(data)
            return line

        head = b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
        # Nothing, half a head, and a body that goes on after the answer.
        for silent in (b"", head):
            assert send(silent).recv(1000) == b""
        late = send(head.replace(b": 4", b": 99999999") + b"\r\n")
        assert b"413" in late.recv(10_000).splitlines()[0]
        while late.recv(10_000):
            pass
        # A body that is still awaited is the business of another limit.
        slow = send(head + b"\r\nab")
        time.sleep(2.5)
        slow.sendall(b"cd")
        assert b"422" in slow.recv(10_000).splitlines()[0]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=", b"x"),
        ("multipart/form-data; boundary=b", b"x"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\nx\r\n--b--\r\n',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="film"; filename="a"\r\n\r\nx\r\n--b--\r\n',
        ),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nx',
        ),
        ("Multipart/Form-Data; boundary=b", b"--b\r\n" + b"x" * 100_000),
    ],
)
def test_forms_that_are_none_get_400(content_type: str, body: bytes, parts: Any) -> None:
    async def ask() -> None:
        async with client(make_app(*parts)) as asking:
            answer = await asking.post("/v1/predict", content=body, headers={"Content-Type": content_type})
            assert answer.status_code == 400
            assert answer.json()["error"]

    asyncio.run(ask())


# --------------------------------------------------------------------------------------------------- OpenAPI


def test_the_description_names_the_fields_of_the_record(parts: Any) -> None:
    classifier, *_ = parts
    described = make_app(*parts).openapi()
    record = classifier.predict(film(), "film.png").record()
    schema = described["components"]["schemas"]["Record"]
    assert list(schema["properties"]) == list(record)
    assert schema["required"] == list(record)
    assert NOT_A_DIAGNOSIS in described["info"]["description"]


REQUESTS = int(os.environ.get("PNEUMO_REQUESTS", "400"))
"""That schemathesis makes, over all of its tests. `pytest -s` shows what came of them."""


@pytest.mark.parametrize("secret", [None, TOKEN])
def test_schemathesis_finds_nothing(secret: str | None, serve: Serve, tmp_path: Path) -> None:
    """Requests of every kind that the description allows, and of those that it does not, to the installed command."""
    schemathesis = pytest.importorskip("schemathesis", reason="the tests of pneumo-serve need the extra dev")
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

    films = st.sampled_from([film(150), film(60, "JPEG"), RED.getvalue(), film()[:90], dicom(), dicom()[:900]])
    for kind in ("image/png", "image/jpeg", "application/dicom", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, films | st.binary())

    @schemathesis.serializer("multipart/related")  # type: ignore[untyped-decorator]
    def as_it_is(_context: Any, value: Any) -> Any:
        return value

    options: list[str | Path] = []
    if secret:
        (tmp_path / "token").write_text(secret)
        (tmp_path / "token").chmod(0o600)
        options = ["--token-file", tmp_path / "token"]
    service = serve(*options)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    schema = schemathesis.openapi.from_url(f"{service.address}/openapi.json", headers=headers)
    tried: Counter[tuple[str, int]] = Counter()

    def examine(case: Any, data: st.DataObject) -> None:
        # A description cannot say which bytes are a film.
        ignored = [positive_data_acceptance]
        if "key" in (case.path_parameters or {}) and data.draw(st.booleans()):
            # One of a film that is there, whatever was deleted before.
            here = httpx.post(f"{service.address}/v1/films", content=film(150), headers=headers, timeout=60)
            case.path_parameters["key"] = here.json()["key"]
            ignored.append(negative_data_rejection)
        answer = case.call_and_validate(headers=headers, excluded_checks=ignored)
        tried[case.operation.label, answer.status_code] += 1

    turn = 0
    while tried.total() < REQUESTS / 2:
        turn += 1
        bounded = settings(
            max_examples=max(15, REQUESTS // 50), deadline=None, database=None,
            phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        for result in schema.get_all_operations():
            operation = result.ok()

            def ask(case: Any, data: st.DataObject) -> None:
                examine(case, data)

            seed(turn)(bounded(given(case=operation.as_strategy(), data=st.data())(ask)))()
    statuses: Counter[int] = Counter()
    for (_, status), count in tried.items():
        statuses[status] += count
    print(
        f"\n{tried.total()} requests:", ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
    )
    assert {operation for operation, _ in tried} == {
        "POST /v1/predict", "POST /v1/films", "GET /v1/films", "GET /v1/films/{key}", "DELETE /v1/films/{key}",
        "POST /v1/films/{key}/rejudge", "POST /v1/films/{key}/resend", "POST /dicom-web/studies",
        "GET /v1/films/{key}/film.png", "GET /v1/films/{key}/film.pgm",
        "GET /v1/films/{key}/heatmap.png", "GET /v1/model", "GET /v1/watch", "GET /metrics", "GET /healthz",
    }  # fmt: skip
    assert {
        ("POST /v1/predict", 200), ("POST /v1/predict", 422), ("POST /v1/films", 202), ("GET /v1/films", 200),
        ("GET /v1/films/{key}", 404), ("GET /v1/films/{key}", 200),
    } <= set(tried)  # fmt: skip
    assert not [status for status in statuses if status >= 500 and status not in (503, 507)]
    assert "Traceback" not in service.log


# ------------------------------------------------------------------------------------------------------ the docs

EXAMPLES = [
    block
    for block in re.findall(
        r"^```sh\n(.*?)^```", (ROOT / "docs" / "serve.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    if "curl" in block
]


@pytest.mark.skipif(shutil.which("bash") is None or shutil.which("curl") is None, reason="needs bash and curl")
def test_the_examples_in_the_docs_work(serve: Serve, tmp_path: Path) -> None:
    assert len(EXAMPLES) == 5
    (tmp_path / "film.png").write_bytes(film())
    (tmp_path / "film.dcm").write_bytes(dicom())
    told = []
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    (tmp_path / "token").chmod(0o600)
    service = serve("--token-file", "token", cwd=tmp_path)
    for block in EXAMPLES:
        # The token opens the door, also where the example is of a device without.
        script = block.replace("http://127.0.0.1:8000", service.address).replace("curl ", "curl -fsS -H @header ")
        given = "(printf 'Authorization: Bearer '; cat token) > header\n"
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", given + script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(answers) == block.count("curl") - block.count("=$(curl") - block.count("-X DELETE")
        told += answers
    assert {"status": "ok"} in told


# ------------------------------------------------------------------------------------------------- the benchmark


def test_the_benchmark_runs(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("psutil", reason="the benchmark needs the extra bench")
    command: list[str | Path] = [Path(sys.executable).with_name("pneumo-bench"), "http"]
    command += ["--model", bundle, "--output", tmp_path]
    done = subprocess.run(
        [*command, "--queries", "2", "--clients", "30", "--requests", "60"],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "http.json").read_text())
    # Every film is answered, and whoever is not told so at once is told to come again.
    assert record["crowd"]["statuses"].pop("200") == 60
    assert set(record["crowd"]["statuses"]) <= {"429"}
    assert set(record["overhead"]) == {"predict", "bytes", "form"}
