"""The installed pneumo-serve between real peers: DCMTK's storescu as the modality, Orthanc as the PACS."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

pydicom = pytest.importorskip("pydicom", reason="needs the extra serve")
pytest.importorskip("pynetdicom", reason="needs the extra serve")
pytest.importorskip("highdicom", reason="needs the extra serve")

from pneumo_bench.serve import Orthanc, Service, dicom_film, find_program, survive  # noqa: E402
from pneumo_edge.classifier import Classifier  # noqa: E402
from pneumo_edge.command_line import NOT_A_DIAGNOSIS  # noqa: E402
from pneumo_train.phantom import draw_phantoms  # noqa: E402

# pynetdicom leaves a socket that was never connected to the garbage collector, which comes before a test has ended.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    yield
    gc.collect()


REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "dicom"
CHESTS = {
    "CR-MONO1-10-chest.dcm": [],
    "RG1_J2KI.dcm": ["--propose-j2k-lossy"],
    "nih_google_no_finding.dcm": [],
    "rsna_16d7f894.dcm": ["--propose-jpeg8"],
}
"""With what storescu needs to know: it sends what is compressed only where it has proposed that."""


def program(name: str) -> str:
    """Returns where a program lies; without it the test is skipped, but not in CI."""
    found = find_program(name)
    if found is None:
        why = f"needs {name}: apt install orthanc dcmtk"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found


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
    assert not [line for line in running.said if "Traceback" in line]


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
    for modality, kind in (("OT", "1.2.840.10008.5.1.4.1.1.7"), ("SR", "1.2.840.10008.5.1.4.1.1.88.22")):
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


def test_nothing_is_lost_or_answered_twice_when_it_is_killed_and_the_pacs_goes_away(
    phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    program("Orthanc")
    films = [dicom_film(phantoms[i % len(phantoms)], i) for i in range(30)]
    found = survive(tmp_path / "run", films, kills=4, away=6.0, associations=4, seed=int(time.time()))
    assert (found["accepted"], found["answered"], found["lost"], found["twice"]) == (30, 30, 0, 0), found
    assert (found["objects"], len(found["kills"]), found["exit_code"]) == (60, 4, 0), found


def test_after_ctrl_c_it_goes_on_where_it_was(
    pacs: Orthanc, phantoms: list[npt.NDArray[np.uint8]], tmp_path: Path
) -> None:
    service = Service(tmp_path / "spool", "--send-to", f"{pacs.ae_title}@127.0.0.1:{pacs.port}")
    pacs.stop()
    with service:
        for i in range(3):
            (tmp_path / f"{i}.dcm").write_bytes(dicom_film(phantoms[i], i))
        assert storescu(service, *(tmp_path / f"{i}.dcm" for i in range(3))).returncode == 0
        assert service.stop(signal.SIGINT) == 130
        pacs.start()
        service.start()
        for i in range(3):
            wait_for_study(pacs, pydicom.dcmread(tmp_path / f"{i}.dcm").StudyInstanceUID)
