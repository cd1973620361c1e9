"""The installed pneumo-serve between real peers: DCMTK's storescu as the modality, Orthanc as the PACS."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import socketserver
import sqlite3
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

httpx = pytest.importorskip("httpx", reason="the tests of pneumo-serve need the extra dev")
pydicom = pytest.importorskip("pydicom", reason="needs the extra serve")
pytest.importorskip("pynetdicom", reason="needs the extra serve")
pytest.importorskip("highdicom", reason="needs the extra serve")

from places import SHARED  # noqa: E402
from pneumo_bench.serve import (  # noqa: E402
    Orthanc,
    Service,
    dicom_film,
    find_program,
    is_whole,
    reserved_port,
    survive,
)
from pneumo_edge.classifier import Classifier  # noqa: E402
from pneumo_edge.command_line import NOT_A_DIAGNOSIS  # noqa: E402
from pneumo_train.phantom import draw_phantoms  # noqa: E402

pytestmark = [
    # pynetdicom leaves a socket that was never connected to the garbage collector, which comes before a test has ended.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]


REAL = SHARED / "data" / "dicom"
CHESTS = {
    "CR-MONO1-10-chest.dcm": [],
    "RG1_J2KI.dcm": ["--propose-j2k-lossy"],
    "nih_google_no_finding.dcm": [],
    "rsna_16d7f894.dcm": ["--propose-jpeg8"],
}
"""With what storescu needs to know: it sends what is compressed only where it has proposed that."""


def program(name: str) -> str:
    """Returns where a program lies; without it the test is skipped, but not in CI."""
    return find_program(name) or skip(f"needs {name}: apt install orthanc dcmtk gcc libc6-dev")


def skip(why: str) -> NoReturn:
    """Skips the test, but not in CI."""
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    pytest.skip(why)


@pytest.fixture
def pacs(tmp_path: Path) -> Iterator[Orthanc]:
    program("Orthanc")
    with Orthanc(tmp_path / "pacs") as running:
        yield running


@pytest.fixture
def service(tmp_path: Path, pacs: Orthanc) -> Iterator[Service]:
    with Service(tmp_path / "spool", "--send-to", f"{pacs.ae_title}@127.0.0.1:{pacs.port}") as running:
        yield running
        assert running.stop() == 0
    assert "Traceback" not in running.log


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[npt.NDArray[np.uint8]]:
    drawn = draw_phantoms(tmp_path_factory.mktemp("drawn") / "phantoms", films=20)
    return [np.asarray(Image.open(path).convert("L")) for path in sorted(drawn.rglob("*.jpeg"))]


def storescu(service: Service, *arguments: str | Path, title: str | None = None) -> subprocess.CompletedProcess[str]:
    peer = ["-aec", title or service.ae_title, "127.0.0.1", str(service.port)]
    line = [program("storescu"), *peer, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


def wait_for_study(pacs: Orthanc, uid: str) -> None:
    deadline = time.monotonic() + 600
    while pacs.instances().get(uid) != {"OT": 1, "SR": 1}:
        assert time.monotonic() < deadline, f"the PACS has no answer under study {uid}: {pacs.instances()}"
        time.sleep(0.2)


def series_of(pacs: Orthanc, uid: str) -> dict[str, dict[str, Any]]:
    """Modality -> the series under a study, as the REST interface describes it."""
    (study,) = [s for s in pacs.get("studies?expand") if s["MainDicomTags"]["StudyInstanceUID"] == uid]
    return {
        series["MainDicomTags"]["Modality"]: series
        for series in map(pacs.get, [f"series/{s}" for s in study["Series"]])
    }


def text_of(report: dict[str, Any]) -> str:
    """All that a person reads in a structured report, from Orthanc's JSON."""
    parts = [report.get("TextValue", "")]
    for name in ("ConceptNameCodeSequence", "ConceptCodeSequence"):
        parts += [code["CodeMeaning"] for code in report.get(name, ())]
    parts += [value["NumericValue"] for value in report.get("MeasuredValueSequence", ())]
    return "\n".join([*parts, *map(text_of, report.get("ContentSequence", ()))])


def check_answer(pacs: Orthanc, film: bytes) -> str:
    """Compares what the PACS says with what the film says and the model; returns the text of the report."""
    source = pydicom.dcmread(pydicom.filebase.DicomBytesIO(film), force=True)
    wait_for_study(pacs, source.StudyInstanceUID)
    series = series_of(pacs, source.StudyInstanceUID)
    with Classifier.load() as classifier:
        prediction = classifier.predict(film, "film")
    for modality, kind in (("OT", "1.2.840.10008.5.1.4.1.1.7"), ("SR", "1.2.840.10008.5.1.4.1.1.88.34")):
        assert "Not a diagnosis" in series[modality]["MainDicomTags"]["SeriesDescription"]
        (instance,) = series[modality]["Instances"]
        tags = pacs.get(f"instances/{instance}/simplified-tags")
        assert tags["SOPClassUID"] == kind
        for keyword in ("PatientID", "PatientBirthDate", "StudyDate", "AccessionNumber"):
            assert tags.get(keyword, "") == str(source.get(keyword) or "")
        assert tags["SoftwareVersions"].startswith("pneumo ")
        if modality == "OT":
            assert tags["SourceImageSequence"][0]["ReferencedSOPInstanceUID"] == source.SOPInstanceUID
            assert tags["ImageComments"] == NOT_A_DIAGNOSIS
            assert max(int(tags["Rows"]), int(tags["Columns"])) >= 720
            assert tags["PhotometricInterpretation"] == "RGB"
    text = text_of(pacs.get(f"instances/{series['SR']['Instances'][0]}/simplified-tags"))
    assert NOT_A_DIAGNOSIS in text
    assert prediction.model in text
    assert prediction.operating_point in text
    for warning in prediction.warnings:
        assert warning in text
    if prediction.label is None:
        assert "No verdict" in text
        assert "Probability" not in text
    else:
        assert f"{prediction.label}. " in text
        # Another process, the same answer.
        assert str(round(prediction.probability, 6)) in text
    return text


def test_a_phantom_goes_from_the_modality_to_the_pacs(
    service: Service, pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    film = tmp_path / "film.dcm"
    film.write_bytes(dicom_film(phantoms[0], 1, PatientName="Süß^Zoë", SpecificCharacterSet="ISO_IR 100"))
    assert (
        subprocess.run(
            [program("echoscu"), "-aec", service.ae_title, "127.0.0.1", str(service.port)], check=False
        ).returncode
        == 0
    )
    assert storescu(service, film, film).returncode == 0
    assert storescu(service, film, title="OTHER").returncode != 0
    check_answer(pacs, film.read_bytes())
    (patient,) = pacs.get("patients?expand")
    assert patient["MainDicomTags"]["PatientName"] == "Süß^Zoë"

    tooth = tmp_path / "tooth.dcm"
    tooth.write_bytes(dicom_film(phantoms[1], 2, Modality="PX"))
    assert storescu(service, tooth).returncode == 0
    uid = pydicom.dcmread(tooth).StudyInstanceUID
    deadline = time.monotonic() + 600
    while pacs.instances().get(uid) != {"SR": 1}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    (report,) = series_of(pacs, uid)["SR"]["Instances"]
    text = text_of(pacs.get(f"instances/{report}/simplified-tags"))
    assert "No verdict" in text
    assert "panoramic X-ray of the jaw" in text
    assert not [line for line in service.said if "Phantom^2" in line or "PHANTOM-" in line or uid in line]


def test_the_four_real_chest_films_go_from_the_modality_to_the_pacs(service: Service, pacs: Orthanc) -> None:
    missing = [name for name in CHESTS if not (REAL / name).exists()]
    if missing:
        pytest.skip(f"real films lie beside the checkout, in ../shared/data/dicom: there is no {missing[0]}")
    for name, proposal in CHESTS.items():
        sent = storescu(service, *proposal, REAL / name)
        assert sent.returncode == 0, sent.stderr
    for name in CHESTS:
        check_answer(pacs, (REAL / name).read_bytes())


def test_nothing_is_lost_or_answered_twice_when_it_is_killed_the_pacs_goes_away_and_the_clock_jumps(
    phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    program("Orthanc")
    program("storescp")
    program("cc")
    films, seed = [dicom_film(phantoms[i % len(phantoms)], i) for i in range(30)], int(time.time())
    print(f"seed {seed}")
    found = survive(tmp_path / "run", films, kills=4, away=6.0, jumps=3, associations=4, seed=seed)
    assert is_whole(found), found
    assert (found["films"], len(found["kills"]), len(found["jumps_days"])) == (30, 4, 3), found
    # The clock has indeed jumped.
    assert found["days_in_log"] > 1, found


def test_after_ctrl_c_it_goes_on_where_it_was(
    pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    pacs.stop()
    with Service(tmp_path / "spool", "--send-to", f"{pacs.ae_title}@127.0.0.1:{pacs.port}") as service:
        for i in range(3):
            (tmp_path / f"{i}.dcm").write_bytes(dicom_film(phantoms[i], i))
        assert storescu(service, *(tmp_path / f"{i}.dcm" for i in range(3))).returncode == 0
        assert service.stop(signal.SIGINT) == 130
        pacs.start()
        service.start()
        for i in range(3):
            wait_for_study(pacs, pydicom.dcmread(tmp_path / f"{i}.dcm").StudyInstanceUID)


# --------------------------------------------------------------------------------------- what was lost in silence


def write(path: Path, film: bytes) -> Path:
    path.write_bytes(film)
    return path


def reports(pacs: Orthanc, uid: str) -> set[str]:
    """The texts of all structured reports under a study. Orthanc's times are whole seconds, so they give no order."""
    (study,) = [s for s in pacs.get("studies?expand") if s["MainDicomTags"]["StudyInstanceUID"] == uid]
    series = [pacs.get(f"series/{each}") for each in study["Series"]]
    found = [each for one in series if one["MainDicomTags"]["Modality"] == "SR" for each in one["Instances"]]
    return {text_of(pacs.get(f"instances/{each}/simplified-tags")) for each in found}


def wait_until(holds: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 600
    while not holds():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.2)


def test_a_film_that_was_cut_off_heals_when_it_comes_whole(
    service: Service, pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    whole = dicom_film(phantoms[0], 1)
    study = pydicom.dcmread(pydicom.filebase.DicomBytesIO(whole)).StudyInstanceUID
    cut = pydicom.dcmread(pydicom.filebase.DicomBytesIO(whole))
    cut.PixelData = cut.PixelData[:1000]
    cut.save_as(tmp_path / "cut.dcm")
    assert storescu(service, tmp_path / "cut.dcm").returncode == 0
    wait_until(lambda: pacs.instances().get(study) == {"SR": 1}, "the PACS has the report of the failure")
    (first,) = reports(pacs, study)
    assert storescu(service, write(tmp_path / "whole.dcm", whole)).returncode == 0
    # The failure of then stays in the PACS; the answer of now is another object, and the PACS takes it.
    wait_until(lambda: pacs.instances().get(study) == {"OT": 1, "SR": 2}, "the PACS has the answer")
    (second,) = reports(pacs, study) - {first}
    assert "cannot be judged" in first
    assert "cannot be judged" not in second
    assert any("with other pixels: judged anew" in line for line in service.said)


def test_a_corrected_film_is_answered_again_under_the_right_patient(
    service: Service, pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    wrong, right = (dicom_film(phantoms[0], 1, PatientID=each) for each in ("WRONG", "RIGHT"))
    study = pydicom.dcmread(pydicom.filebase.DicomBytesIO(wrong)).StudyInstanceUID
    assert storescu(service, write(tmp_path / "wrong.dcm", wrong)).returncode == 0
    wait_for_study(pacs, study)
    assert storescu(service, write(tmp_path / "right.dcm", right)).returncode == 0

    def patients() -> dict[str, int]:
        return {
            patient["MainDicomTags"]["PatientID"]: len(patient["Studies"]) for patient in pacs.get("patients?expand")
        }

    wait_until(lambda: patients() == {"WRONG": 1, "RIGHT": 1}, "the PACS has both")
    wait_until(lambda: pacs.get("statistics")["CountInstances"] == 4, "it has all")
    assert any("with other patient: judged anew. Its earlier answer" in line for line in service.said)
    # A collision of UIDs is another thing.
    other = dicom_film(phantoms[1], 1, PatientID="THIRD")
    assert storescu(service, write(tmp_path / "other.dcm", other)).returncode != 0
    assert not [line for line in service.said if "WRONG" in line or "RIGHT" in line or "THIRD" in line]


def answered(service: Service, pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], folder: Path) -> tuple[bytes, str]:
    """Sends a film, also kept as film.dcm, waits for its answer, and returns the film and its study."""
    film = dicom_film(phantoms[0], 1)
    study: str = pydicom.dcmread(pydicom.filebase.DicomBytesIO(film)).StudyInstanceUID
    assert storescu(service, write(folder / "film.dcm", film)).returncode == 0
    wait_for_study(pacs, study)
    return film, study


def test_a_film_that_comes_in_two_ways_is_answered_once(
    service: Service, pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    film, study = answered(service, pacs, phantoms, tmp_path)
    # As an archive has it that packs its films, as storescu converts it, and as a file.
    packed = pydicom.dcmread(tmp_path / "film.dcm")
    packed.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
    packed.save_as(tmp_path / "packed.dcm")
    assert storescu(service, "-xr", tmp_path / "packed.dcm").returncode == 0
    assert storescu(service, "-xi", tmp_path / "film.dcm").returncode == 0
    head = {"Content-Type": "application/dicom"}
    told = httpx.post(f"{service.address}/dicom-web/studies", content=film, headers=head, timeout=60)
    assert told.status_code == 200
    wait_until(lambda: service.log.count("received again") == 3, "the log has all that came")
    assert [line.rpartition(", ")[2] for line in service.said if "received again" in line] == ["the same"] * 3
    time.sleep(2)
    assert pacs.instances() == {study: {"OT": 1, "SR": 1}}


def test_its_own_answer_that_comes_back_is_no_film(
    service: Service, pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    _, study = answered(service, pacs, phantoms, tmp_path)
    (picture,) = series_of(pacs, study)["OT"]["Instances"]
    assert storescu(service, write(tmp_path / "picture.dcm", pacs.file(picture))).returncode == 0
    assert any("an answer of pneumo came back as a film: dropped" in line for line in service.said)
    time.sleep(2)
    assert pacs.instances() == {study: {"OT": 1, "SR": 1}}


@pytest.mark.skipif(not Path("/sys/fs").exists(), reason="a small disk is made with Linux's tmpfs")
def test_a_full_disk_takes_no_film_either_way_and_takes_them_again_when_there_is_room(
    phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    films = [dicom_film(phantoms[i], i) for i in range(2)]
    paths = [write(tmp_path / f"{i}.dcm", film) for i, film in enumerate(films)]
    disk = tmp_path / "disk"
    disk.mkdir()
    # It lays memory by only for what is written into it.
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300m", "none", disk], check=False).returncode != 0:
        pytest.skip("a small disk is mounted by root alone")
    try:
        with Service(disk / "spool") as service:
            films_at = f"{service.address}/v1/films"

            def by_http() -> int:
                return int(httpx.post(films_at, content=films[1], timeout=60).status_code)

            def health() -> int:
                return int(httpx.get(f"{service.address}/healthz", timeout=60).status_code)

            assert (storescu(service, paths[0]).returncode, by_http(), health()) == (0, 202, 200)
            with (disk / "filled").open("wb") as filled:
                os.posix_fallocate(filled.fileno(), 0, 60 << 20)
            # A700, which a modality takes to mean: later.
            refused = storescu(service, "-v", paths[1])
            assert refused.returncode != 0
            assert "OutOfResources" in refused.stderr.replace(" ", "")
            assert (by_http(), health()) == (507, 503)
            assert httpx.get(films_at, timeout=60).json()["total"] == 2
            wait_until(lambda: "STORESCU at 127.0.0.1: a film was refused: the disk is" in service.log, "it is told")
            (disk / "filled").unlink()
            assert (storescu(service, paths[1]).returncode, by_http(), health()) == (0, 202, 200)
            assert service.stop() == 0
    finally:
        subprocess.run(["umount", disk], check=True)


def test_the_node_may_be_in_the_network_and_the_page_not(phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    path = write(tmp_path / "film.dcm", dicom_film(phantoms[0], 1))
    with Service(tmp_path / "spool", "--dicom-host", "127.0.0.2") as service:
        assert service.address.startswith("http://127.0.0.1:")
        line = [program("storescu"), "-aec", service.ae_title, "127.0.0.2", str(service.port), str(path)]
        assert subprocess.run(line, timeout=600, check=False).returncode == 0
        # Nobody is there by the address of the page, and no page by that of the node.
        assert storescu(service, path).returncode != 0
        with pytest.raises(httpx.ConnectError):
            httpx.get(service.address.replace("127.0.0.1", "127.0.0.2"), timeout=60)
        assert service.stop() == 0


@contextmanager
def storescp(folder: Path, *options: str) -> Iterator[int]:
    """A PACS that takes what DCMTK's storescp takes; yields its port."""
    folder.mkdir()
    with reserved_port() as port:
        line = [program("storescp"), "-aet", "STORESCP", "-od", str(folder), *options, str(port)]
        process = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: listens(port), "storescp is there")
            yield port
        finally:
            process.kill()
            process.wait()


def listens(port: int) -> bool:
    with socket.socket() as line:
        return line.connect_ex(("127.0.0.1", port)) == 0


def kinds(folder: Path) -> list[str]:
    return sorted(pydicom.dcmread(path).SOPClassUID.name for path in folder.iterdir() if path.is_file())


def test_each_destination_gets_what_it_is_to_get_and_can_take(
    pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    """Orthanc gets the report alone; an old PACS what it knows."""
    profile = tmp_path / "old.cfg"
    profile.write_text(
        "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LittleEndianImplicit\n[[PresentationContexts]]\n[Old]\n"
        "PresentationContext1 = SecondaryCaptureImageStorage\\Plain\n"
        "PresentationContext2 = BasicTextSRStorage\\Plain\n[[Profiles]]\n[Default]\nPresentationContexts = Old\n"
    )
    with storescp(tmp_path / "old", "-xf", str(profile), "Default") as port:
        options = ["--send-to", f"{pacs.ae_title}@127.0.0.1:{pacs.port}=sr", "--send-to", f"STORESCP@127.0.0.1:{port}"]
        with Service(tmp_path / "spool", *options) as service:
            film = dicom_film(phantoms[0], 1)
            study = pydicom.dcmread(pydicom.filebase.DicomBytesIO(film)).StudyInstanceUID
            assert storescu(service, write(tmp_path / "film.dcm", film)).returncode == 0
            wait_until(lambda: pacs.instances().get(study) == {"SR": 1}, "Orthanc has the report")
            wait_until(lambda: len(list((tmp_path / "old").iterdir())) == 2, "the old PACS has both")
            wait_until(lambda: sum("sent to" in line for line in service.said) == 3, "all of it is noted")
            assert service.stop() == 0
    assert kinds(tmp_path / "old") == ["Basic Text SR Storage", "Secondary Capture Image Storage"]


def test_a_destination_that_takes_no_reports_has_its_picture_and_says_why(
    phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    profile = tmp_path / "old.cfg"
    profile.write_text(
        "[[TransferSyntaxes]]\n[Plain]\nTransferSyntax1 = LittleEndianImplicit\n[[PresentationContexts]]\n[Old]\n"
        "PresentationContext1 = SecondaryCaptureImageStorage\\Plain\n[[Profiles]]\n[Default]\n"
        "PresentationContexts = Old\n"
    )
    with (
        storescp(tmp_path / "old", "-xf", str(profile), "Default") as port,
        Service(tmp_path / "spool", "--send-to", f"STORESCP@127.0.0.1:{port}") as service,
    ):
        assert storescu(service, write(tmp_path / "film.dcm", dicom_film(phantoms[0], 1))).returncode == 0
        wait_until(
            lambda: any("takes no reports (Comprehensive 3D, Enhanced" in line for line in service.said), "it is told"
        )
        assert any("is there; it takes no reports" in line for line in service.said)
        wait_until(lambda: kinds(tmp_path / "old") == ["Secondary Capture Image Storage"], "the picture is there")
        assert service.stop() == 0
    with sqlite3.connect(tmp_path / "spool" / "journal.db") as db:
        assert db.execute("SELECT state FROM films").fetchall() == [("sent",)]
    db.close()


def test_a_pacs_that_hangs_does_not_keep_it_from_stopping(
    phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    """storescp takes the object and answers after ten minutes."""
    with (
        storescp(tmp_path / "slow", "--sleep-after", "600") as port,
        Service(tmp_path / "spool", "--send-to", f"STORESCP@127.0.0.1:{port}") as service,
    ):
        assert storescu(service, write(tmp_path / "film.dcm", dicom_film(phantoms[0], 1))).returncode == 0
        wait_until(lambda: len(list((tmp_path / "slow").iterdir())) == 1, "it hangs")
        assert service.stop() == 0
        assert len(list((tmp_path / "slow").iterdir())) == 1
    # What was on its way is sent after the next start.
    with sqlite3.connect(tmp_path / "spool" / "journal.db") as db:
        assert db.execute("SELECT state FROM films").fetchall() == [("answered",)]
    db.close()


def test_a_pacs_that_is_not_there_is_told_at_the_start(tmp_path: Path, nobody: int) -> None:
    with Service(tmp_path / "spool", "--send-to", f"PACS@127.0.0.1:{nobody}") as service:
        wait_until(lambda: any("the PACS does not answer; answers wait" in line for line in service.said), "it is told")
        assert service.stop() == 0


def certificate(folder: Path, name: str, authority: tuple[Path, Path] | None = None) -> tuple[Path, Path]:
    """Makes a certificate for this machine that an authority signs, or nobody else; returns it and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("needs openssl")
    crt, key = folder / f"{name}.crt", folder / f"{name}.key"
    line = ["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-keyout", key, "-out", crt]
    more = ["-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]
    if authority is not None:
        more += ["-CA", str(authority[0]), "-CAkey", str(authority[1]), "-addext", "basicConstraints=CA:FALSE"]
    subprocess.run([openssl, *map(str, line), *more], check=True, capture_output=True)
    return crt, key


def test_over_tls_in_both_directions(phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path) -> None:
    """DCMTK's storescu calls with a certificate and without one; its storescp is the PACS."""
    ours, modality, stranger = (certificate(tmp_path, name) for name in ("pneumo", "modality", "stranger"))
    trusted = tmp_path / "trusted.crt"
    trusted.write_text(ours[0].read_text() + modality[0].read_text())
    options = ["--tls-certificate", ours[0], "--tls-key", ours[1], "--tls-authority", trusted]
    scp = ["+tls", modality[1], modality[0], "+cf", trusted]
    with storescp(tmp_path / "pacs", *map(str, scp)) as port:
        to = f"tls:STORESCP@127.0.0.1:{port}"
        with Service(tmp_path / "spool", "--send-to", to, *map(str, options)) as service:
            film = write(tmp_path / "film.dcm", dicom_film(phantoms[0], 1))
            assert storescu(service, film).returncode != 0
            assert storescu(service, "+tls", stranger[1], stranger[0], "+cf", trusted, film).returncode != 0
            # One who shakes no hands keeps nobody waiting.
            with socket.create_connection(("127.0.0.1", service.port)):
                known = storescu(service, "+tls", modality[1], modality[0], "+cf", trusted, film)
            assert known.returncode == 0, known.stderr
            wait_until(lambda: len(list((tmp_path / "pacs").iterdir())) == 2, "the PACS has both")
            assert service.stop() == 0
    # A PACS that is not who it says it is gets nothing.
    scp = ["+tls", stranger[1], stranger[0], "-ic"]
    with storescp(tmp_path / "false", *map(str, scp)) as port:
        to = f"tls:STORESCP@127.0.0.1:{port}"
        with Service(tmp_path / "spool2", "--send-to", to, *map(str, options)) as service:
            wait_until(lambda: any("not over TLS" in line for line in service.said), "it is told")
            assert service.stop() == 0
    assert list((tmp_path / "false").iterdir()) == []


@pytest.fixture
def plugin() -> Path:
    """Orthanc's DICOMweb."""
    program("Orthanc")
    found = [*Path("/usr/share/orthanc/plugins").glob("libOrthancDicomWeb.so*")]
    return found[0] if found else skip("needs Orthanc's DICOMweb plugin: apt install orthanc-dicomweb")


@pytest.fixture
def dicomweb(plugin: Path, tmp_path: Path) -> Iterator[Orthanc]:
    with Orthanc(tmp_path / "web", plugin) as running:
        yield running


def test_films_and_answers_go_over_dicomweb(
    dicomweb: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    """Orthanc's STOW-RS client hands the film in, and its server gets the answer."""
    url = f"http://127.0.0.1:{dicomweb.http}/dicom-web"
    with Service(tmp_path / "spool", "--send-to", url) as service:
        film = dicom_film(phantoms[0], 1)
        study = pydicom.dcmread(pydicom.filebase.DicomBytesIO(film)).StudyInstanceUID
        there = dicomweb.post("instances", film)["ID"]
        dicomweb.put("dicom-web/servers/pneumo", {"Url": f"{service.address}/dicom-web/"})
        dicomweb.post("dicom-web/servers/pneumo/stow", json.dumps({"Resources": [there]}).encode())
        wait_until(lambda: dicomweb.instances().get(study) == {"DX": 1, "OT": 1, "SR": 1}, "the answer is there")
        assert any(f"report sent to {url}" in line for line in service.said)
        assert any("received from 127.0.0.1" in line for line in service.said)
        assert service.stop() == 0


@contextmanager
def tls_before(port: int, certificate: tuple[Path, Path], authority: Path) -> Iterator[int]:
    """A front with TLS, as a hospital has it before its PACS, that asks for a certificate of the authority.

    Debian's Orthanc cannot do it alone: 1.10.1 ends with a segmentation fault at the first request over TLS.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(*certificate)

    class Front(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with (
                suppress(OSError),
                context.wrap_socket(self.request, server_side=True) as outside,
                socket.create_connection(("127.0.0.1", port)) as inside,
            ):
                while True:
                    ready = [outside] if outside.pending() else select.select([outside, inside], [], [])[0]
                    for source in ready:
                        data = source.recv(1 << 16)
                        if not data:
                            return
                        (inside if source is outside else outside).sendall(data)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Front) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever).start()
        yield server.server_address[1]
        server.shutdown()


def test_answers_go_over_dicomweb_with_tls(
    dicomweb: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    """Who does not know the authority of the PACS sends it nothing, and the PACS takes nothing of who has no
    certificate of it; what waited is sent when both is mended."""
    authority = certificate(tmp_path, "hospital")
    ours, theirs = (certificate(tmp_path, name, authority) for name in ("pneumo", "pacs"))
    film = write(tmp_path / "film.dcm", dicom_film(phantoms[0], 1))
    study = pydicom.dcmread(film).StudyInstanceUID
    known = ["--tls-authority", str(authority[0])]
    shown = ["--tls-certificate", str(ours[0]), "--tls-key", str(ours[1])]
    with tls_before(dicomweb.http, theirs, authority[0]) as port:
        to = ["--send-to", f"https://127.0.0.1:{port}/dicom-web"]
        with Service(tmp_path / "spool", *to) as service:
            assert storescu(service, film).returncode == 0
            wait_until(
                lambda: any("certificate of the server is not believed" in line for line in service.said), "it is told"
            )
            assert service.stop() == 0
        with Service(tmp_path / "spool", *to, *known) as service:
            wait_until(lambda: any("over TLS (" in line for line in service.said), "it is told")
            assert service.stop() == 0
        assert dicomweb.instances() == {}
        with Service(tmp_path / "spool", *to, *known, *shown) as service:
            wait_until(lambda: dicomweb.instances().get(study) == {"OT": 1, "SR": 1}, "the answer is there")
            wait_until(lambda: sum("sent to https://" in line for line in service.said) == 2, "it is noted")
            assert service.stop() == 0


def test_a_child_gets_the_reason_and_a_hand_gets_nothing(
    pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    options = ["--send-to", f"{pacs.ae_title}@127.0.0.1:{pacs.port}", "--min-age", "4", "--other-parts", "ignore"]
    with Service(tmp_path / "spool", *options) as service:
        films = {
            "hand": dicom_film(phantoms[0], 1, BodyPartExamined="HAND"),
            "tooth": dicom_film(phantoms[0], 2, Modality="PX"),
            "child": dicom_film(phantoms[0], 3, PatientAge="003Y"),
        }
        for name, film in films.items():
            assert storescu(service, write(tmp_path / f"{name}.dcm", film)).returncode == 0
        study = pydicom.dcmread(tmp_path / "child.dcm").StudyInstanceUID
        wait_for_study(pacs, study)
        assert pacs.instances() == {study: {"OT": 1, "SR": 1}}
        (text,) = reports(pacs, study)
        assert "this device gives no verdict on patients younger than 4 years" in text
        assert "Patient younger than the device answers for" in text
        assert "Probability" not in text
        assert service.stop() == 0
