"""What `--data` names: folders as they come, whose film each is, and the download."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pictures import draw
from places import SHARED
from pneumo_edge.errors import DataError
from pneumo_train import train as train_module
from pneumo_train.films import Box, FilmFile, labels_of
from pneumo_train.sources import absolute, find_root, gather, root_of

REAL = SHARED / "data"


def dicom(path: Path) -> Path:
    """Writes what begins like a DICOM file: nothing here looks further."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(128) + b"DICM" + bytes(200))
    return path


def films_of(data: Path, **options: Any) -> tuple[FilmFile, ...]:
    return gather([str(data)], **options).films


# ---------------------------------------------------------------------------------------------------- the index


@pytest.mark.parametrize("nesting", ["", "chest_xray", "chest_xray/chest_xray"])
def test_finds_the_films_however_the_download_is_nested(data: Path, tmp_path: Path, nesting: str) -> None:
    given = tmp_path / "download"
    (given / nesting).parent.mkdir(parents=True, exist_ok=True)
    data.rename(given / nesting)
    found = gather([str(given)])
    assert found.roots == (given / nesting,)
    assert len(found.films) == 7
    assert not found.remarks


def test_passes_over_what_archives_leave_behind(data: Path) -> None:
    before = gather([str(data)])
    draw(data / "__MACOSX" / "train" / "NORMAL" / "IM-0115-0001.jpeg")
    draw(data / "train" / "NORMAL" / "__MACOSX" / "IM-0115-0001.jpeg")
    draw(data / "train" / "NORMAL" / ".hidden" / "IM-0115-0001.jpeg")
    (data / "train" / "NORMAL" / "._IM-0115-0001.jpeg").write_bytes(b"\0\5\26\7")
    (data / "train" / ".DS_Store").write_bytes(b"\0")
    (data / "train" / "NORMAL" / ".DS_Store").write_bytes(b"\0")
    (data / "train" / "NORMAL" / "Thumbs.db").write_bytes(b"\0")
    (data / "train" / "NORMAL" / "a folder.jpeg").mkdir()
    assert gather([str(data)]) == before
    assert not before.remarks


def test_a_film_carries_label_patient_and_folder(data: Path) -> None:
    draw(data / "val" / "PNEUMONIA" / "deeper" / "person9_bacteria_4.PNG")
    assert list(films_of(data)) == [
        FilmFile("train/NORMAL/IM-0115-0001.jpeg", 0, "IM-0115", "train", "data"),
        FilmFile("train/NORMAL/IM-0117-0001.jpeg", 0, "IM-0117", "train", "data"),
        FilmFile("train/PNEUMONIA/person1_bacteria_1.jpeg", 1, "person1", "train", "data"),
        FilmFile("train/PNEUMONIA/person1_bacteria_2.jpeg", 1, "person1", "train", "data"),
        FilmFile("train/PNEUMONIA/person2_virus_3.jpeg", 1, "person2", "train", "data"),
        FilmFile("val/PNEUMONIA/deeper/person9_bacteria_4.PNG", 1, "person9", "val", "data"),
        FilmFile("test/NORMAL/IM-0001-0001.jpeg", 0, "IM-0001", "test", "data"),
        FilmFile("test/PNEUMONIA/person1_virus_6.jpeg", 1, "person1", "test", "data"),
    ]
    assert labels_of(films_of(data)).tolist() == [0, 0, 1, 1, 1, 1, 0, 1]


def test_a_folder_that_is_missing_or_no_folder_is_named(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nowhere", draw(tmp_path / "film.png")):
        with pytest.raises(DataError, match="is no folder") as error:
            find_root(wrong)
        assert str(wrong) in str(error.value)


def test_a_folder_without_train_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "films" / "NORMAL").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no train/ folder"):
        films_of(tmp_path / "empty")


@pytest.mark.parametrize("missing", ["NORMAL", "PNEUMONIA"])
def test_one_class_alone_is_refused_by_name(data: Path, missing: str) -> None:
    for film in (data / "train" / missing).iterdir():
        film.unlink()
    with pytest.raises(DataError, match=rf"{data} holds no {missing} film in train/: films of both classes"):
        films_of(data)
    shutil.rmtree(data / "train" / missing)
    (data / "train" / "other").mkdir()
    draw(data / "train" / "other" / "film.png")
    with pytest.raises(DataError, match=rf"holds no {missing} film in train/: .*: not used: 1 films in train/other/, "):
        films_of(data)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names themselves")
@pytest.mark.parametrize("name", [b"IM-1\xff.jpeg", b"IM-1\n.jpeg"])
def test_a_name_that_no_csv_file_can_hold_is_refused(data: Path, name: bytes) -> None:
    shutil.copy(data / "train/NORMAL/IM-0115-0001.jpeg", data / "train/NORMAL" / os.fsdecode(name))
    with pytest.raises(DataError, match="rename it") as error:
        films_of(data)
    str(error.value).encode("ascii")  # can be printed on any terminal


# ------------------------------------------------------------------------------------------------- whose film


@pytest.mark.parametrize(
    ("name", "patient"),
    [
        ("person12_bacteria_34.jpeg", "person12"),
        ("person1_virus_6.jpeg", "person1"),
        ("IM-0115-0001.jpeg", "IM-0115"),
        ("IM-0115-0001-0002.jpeg", "IM-0115"),
        ("NORMAL2-IM-0927-0001.jpeg", "NORMAL2-IM-0927"),
        ("NORMAL2-IM-0927-0001-0002.jpeg", "NORMAL2-IM-0927"),
        ("BACTERIA-1234567-0002.jpeg", "1234567"),
        ("VIRUS-7654-0001.jpeg", "7654"),
        ("NORMAL-28501-0001.jpeg", "28501"),
        ("person_12.jpeg", "person_12"),
        ("scan 7.jpeg", "scan 7"),
    ],
)
def test_the_patient_stands_in_the_names_of_the_kaggle_set(data: Path, name: str, patient: str) -> None:
    draw(data / "train" / "NORMAL" / name)
    assert {f.path: f.patient for f in films_of(data)}[f"train/NORMAL/{name}"] == patient


@pytest.mark.parametrize(
    ("rule", "patient"),
    [
        (r"^(\d+)-", "0042"),  # the first group
        (r"^\d+", "0042"),  # no group: the whole match
        (r"(x)?^(\d+)", "0042"),  # a group that did not match is passed over
        (r"(x)?\d+-v", "0042-v"),  # no group matched: the whole match
        (r"zebra", "0042-view3"),  # no match: a patient of its own
        (r"z*", "0042-view3"),  # a match of nothing is none, or all films would be one patient's
    ],
)
def test_a_rule_of_the_user_finds_the_patient(data: Path, rule: str, patient: str) -> None:
    draw(data / "train" / "NORMAL" / "0042-view3.png")
    assert {f.path: f.patient for f in films_of(data, patient_rule=rule)}["train/NORMAL/0042-view3.png"] == patient


def test_a_broken_rule_is_a_sentence(data: Path) -> None:
    with pytest.raises(DataError, match=r"--patient-regex '\(person' is no regular expression"):
        films_of(data, patient_rule="(person")


# ------------------------------------------------------------------------------------- what is found and not used


def test_what_is_found_and_not_used_is_counted_and_named_with_what_takes_it(data: Path) -> None:
    before = films_of(data)
    for i in range(3):
        draw(data / "train" / "COVID19" / f"deeper/{i}.png")
    draw(data / "test" / "COVID19" / "4.png")
    draw(data / "extra" / "NORMAL" / "5.png")
    draw(data / "6.png")
    draw(data / "train" / "7.png")
    dicom(data / "train" / "OTHER" / "IM0008")
    (data / "train" / "OTHER" / "readme.txt").write_text("no film")
    (data / "train" / "OTHER" / "notes").write_text("no film either")
    found = gather([str(data)])
    assert found.films == before
    assert found.remarks == (
        f"{data}: not used: 1 films beside the folders train/, val/ and test/",
        f"{data}: not used: 1 films in extra/, which is none of train/, val/ and test/",
        f"{data}: not used: 1 films in test/COVID19/, which is no class: take them with --label COVID19=PNEUMONIA or "
        "NORMAL",
        f"{data}: not used: 1 films in train/ itself, which belong into NORMAL/ or PNEUMONIA/",
        f"{data}: not used: 3 films in train/COVID19/, which is no class: take them with --label COVID19=PNEUMONIA or "
        "NORMAL",
        f"{data}: not used: 1 films in train/OTHER/, which is no class: take them with --label OTHER=PNEUMONIA or "
        "NORMAL",
    )


def test_other_classes_are_taken_by_the_option_that_the_sentence_names(data: Path) -> None:
    draw(data / "train" / "COVID19" / "a.png")
    draw(data / "train" / "healthy" / "b.png")
    found = gather([str(data)], labels={"COVID19": "PNEUMONIA", "healthy": "NORMAL"})
    labels = {film.path: film.label for film in found.films}
    assert (labels["train/COVID19/a.png"], labels["train/healthy/b.png"]) == (1, 0)
    assert not found.remarks
    with pytest.raises(DataError, match="--label COVID19=ILL: a film is NORMAL or PNEUMONIA"):
        gather([str(data)], labels={"COVID19": "ILL"})


def test_validation_is_val_by_its_whole_name(data: Path) -> None:
    draw(data / "validation" / "NORMAL" / "IM-0200-0001.png")
    [film] = [film for film in films_of(data) if film.path.startswith("validation/")]
    assert film.folder == "val"


@pytest.mark.parametrize("name", ["IM0001", "1.2.840.10008.5", "film.dcm", "film.dicom"])
def test_dicom_files_are_films_with_and_without_a_suffix(data: Path, name: str) -> None:
    dicom(data / "train" / "NORMAL" / name)
    assert f"train/NORMAL/{name}" in {film.path for film in films_of(data)}


def test_names_without_a_suffix_are_patients_of_their_own(data: Path) -> None:
    for name in ("1.2.840.1", "1.2.840.2"):
        dicom(data / "train" / "NORMAL" / name)
    assert {film.patient for film in films_of(data) if "1.2.840" in film.path} == {"1.2.840.1", "1.2.840.2"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right of their own there")
def test_links_are_followed_where_a_part_or_a_class_is_expected_and_named_elsewhere(data: Path, tmp_path: Path) -> None:
    before = films_of(data)
    store = tmp_path / "store"
    (data / "train").rename(store)
    (store / "NORMAL").rename(tmp_path / "well")
    (data / "train").symlink_to(store)
    (store / "NORMAL").symlink_to(tmp_path / "well")
    assert films_of(data) == before

    (store / "NORMAL" / "more").symlink_to(data)  # leads in a circle
    (data / "old").symlink_to(tmp_path / "well")
    (store / "OTHER").symlink_to(tmp_path / "well")
    (store / "PNEUMONIA" / "linked.png").symlink_to(draw(tmp_path / "film.png"))
    (store / "PNEUMONIA" / "gone.png").symlink_to(tmp_path / "gone.png")
    found = gather([str(data)])
    assert [f.path for f in found.films if f not in before] == ["train/PNEUMONIA/linked.png"]
    assert found.remarks == (
        f"{data}: not used: 1 link to a folder, old: links are not followed: put the folder in its place",
        f"{data}: not used: 1 link to a folder, train/NORMAL/more: links are not followed: put the folder in its place",
        f"{data}: not used: 1 link to a folder, train/OTHER: links are not followed: put the folder in its place",
        f"{data}: not used: 1 links in train/PNEUMONIA/ that lead to no film: fetch what they link to",
    )


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names themselves")
def test_what_is_not_used_is_named_on_any_terminal(data: Path) -> None:
    draw(data / "train" / "NORMAL" / "a.png").rename(data / "train" / "a.png")
    odd = data / os.fsdecode(b"odd\xff\n")
    odd.mkdir()
    (data / "train" / "a.png").rename(odd / "a.png")
    [remark] = gather([str(data)]).remarks
    assert "films in odd\\udcff\\n/, which is none of" in remark


def test_a_rule_that_fits_few_names_says_so(data: Path) -> None:
    for i in range(7):
        draw(data / "train" / "NORMAL" / f"scan{i}.png", i)
    assert not gather([str(data)]).remarks  # it fits half of them
    draw(data / "train" / "NORMAL" / "scan8.png")
    [remark] = gather([str(data)]).remarks
    assert (
        "the patient rule fits 7 of 15 file names: each of the other 8 films counts as a patient of its own" in remark
    )
    [remark] = gather([str(data)], patient_rule="zebra").remarks
    assert "fits 0 of 15" in remark
    assert "--patient-regex" in remark


# --------------------------------------------------------------------------------------------------- several sites


def test_several_sites_have_names_paths_and_sources_of_their_own(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "north")
    found = gather(
        [str(data), f"North Hospital={tmp_path / 'north'}"],
        sources={"North Hospital": "films of the north"},
        licences={"data": "CC BY 4.0"},
    )
    assert found.roots == (data, tmp_path / "north")
    assert [(film.site, film.source) for film in found.films] == [("data", 0)] * 7 + [("North Hospital", 1)] * 7
    assert len({film.key for film in found.films}) == 14
    assert found.sources == {"data": "data", "North Hospital": "films of the north"}  # never guessed
    assert found.licences == {"data": "CC BY 4.0"}


def test_two_sites_of_one_name_are_refused(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "more" / "data")
    with pytest.raises(DataError, match=r"both hold films of a site named 'data': .*--data SITE=PATH") as error:
        gather([str(data), str(tmp_path / "more" / "data")])
    assert str(data) in str(error.value)
    assert len(gather([str(data), f"other={tmp_path / 'more' / 'data'}"]).films) == 14


def test_a_site_that_is_described_must_be_there(data: Path) -> None:
    with pytest.raises(DataError, match=r"--source names the site 'north', .*: there are data"):
        gather([str(data)], sources={"north": "text"})
    with pytest.raises(DataError, match=r"--licence names the site 'north', .*: there are data"):
        gather([str(data)], licences={"north": "text"})


def test_a_path_may_hold_an_equals_sign(data: Path, tmp_path: Path) -> None:
    data.rename(tmp_path / "a=b")
    assert gather([str(tmp_path / "a=b")]).films[0].site == "a=b"
    assert gather([f"here={tmp_path / 'a=b'}"]).films[0].site == "here"
    assert absolute(f"here={tmp_path / 'x' / '..' / 'a=b'}") == f"here={tmp_path / 'a=b'}"
    assert root_of(f"here={tmp_path / 'a=b'}") == tmp_path / "a=b"


@pytest.mark.parametrize("layout", ["folder", "manifest"])
def test_phantoms_say_what_they_are(data: Path, layout: str) -> None:
    (data / "PHANTOM.json").write_text('{"source": "drawings"}')
    if layout == "manifest":
        lines = [f"{film.path},{('NORMAL', 'PNEUMONIA')[film.label]}" for film in films_of(data)]
        (data / "films.csv").write_text("\n".join(["path,label", *lines]))
    assert gather([str(data)]).sources == {"data": "drawings"}


def test_boxes_stand_beside_the_parts_of_a_folder_too(data: Path) -> None:
    (data / "boxes.csv").write_text("path,x0,y0,x1,y1\ntrain/PNEUMONIA/person2_virus_3.jpeg,0.1,0.2,0.3,0.4\n")
    boxes = {film.path: film.boxes for film in films_of(data)}
    assert boxes.pop("train/PNEUMONIA/person2_virus_3.jpeg") == (Box(0.1, 0.2, 0.3, 0.4),)
    assert not any(boxes.values())
    (data / "boxes.csv").write_text("path,x0,y0,x1,y1\ntrain/NORMAL/IM-0115-0001.jpeg,0.1,0.2,0.3,0.4\n")
    with pytest.raises(DataError, match=r"boxes\.csv, line 2: .* has a box, and its folder says NORMAL"):
        films_of(data)


def test_the_real_sites_are_read_as_their_readme_counts_them() -> None:
    if not (REAL / "sites" / "films.csv").is_file():
        pytest.skip(f"no real films in {REAL}")
    found = gather([f"kermany={REAL / 'chest_xray'}", str(REAL / "sites")])
    assert Counter((f.site, f.folder, f.label) for f in found.films) == {
        ("kermany", "train", 0): 1341, ("kermany", "train", 1): 3875,
        ("kermany", "test", 0): 234, ("kermany", "test", 1): 390,
        ("siim_covid19", "train", 0): 1434, ("siim_covid19", "train", 1): 3638,
        ("siim_covid19", "test", 0): 276, ("siim_covid19", "test", 1): 655,
        ("rsna", "train", 0): 901, ("rsna", "train", 1): 907, ("rsna", "test", 0): 155, ("rsna", "test", 1): 179,
    }  # fmt: skip
    assert {bool(f.boxes) for f in found.films if f.site == "siim_covid19" and f.label} == {True}
    assert not found.remarks


# ---------------------------------------------------------------------------------------------- the download


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Stands in for kagglehub; `requests`, with which it asks, finds everybody at home."""
    requests = SimpleNamespace(head=lambda *_, **__: None, ConnectionError=ConnectionError, Timeout=TimeoutError)
    monkeypatch.setitem(sys.modules, "requests", requests)
    fake = SimpleNamespace(requests=requests)
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    return fake


def test_kaggle_is_downloaded_with_kagglehub(data: Path, tmp_path: Path, hub: SimpleNamespace) -> None:
    (tmp_path / "hub").mkdir()
    data.rename(tmp_path / "hub" / "chest_xray")
    asked = []

    def dataset_download(handle: str) -> str:
        asked.append(handle)
        return str(tmp_path / "hub")

    hub.dataset_download = dataset_download
    places, described = train_module._locate(["kaggle"], tmp_path)
    found = gather(places, sources=described)
    assert asked == ["paultimothymooney/chest-xray-pneumonia"]
    assert (found.roots, len(found.films)) == ((tmp_path / "hub" / "chest_xray",), 7)
    assert {film.site for film in found.films} == {"kermany"}
    assert found.sources["kermany"].startswith("chest-xray-pneumonia")


@pytest.mark.parametrize("error", [RuntimeError("no such data set\nand more\nwords"), ConnectionError("pool(host=x)")])
def test_a_download_that_fails_is_one_sentence(tmp_path: Path, hub: SimpleNamespace, error: Exception) -> None:
    def dataset_download(handle: str) -> str:
        raise error

    hub.dataset_download = dataset_download
    with pytest.raises(DataError, match=r"could not be downloaded.*check the network, or download it by") as raised:
        train_module._locate(["kaggle"], tmp_path)
    assert "\n" not in str(raised.value)
    assert "more words" not in str(raised.value)


def test_where_kaggle_does_not_answer_nobody_waits_for_ever(tmp_path: Path, hub: SimpleNamespace) -> None:
    def silence(_: str, timeout: float) -> None:
        assert timeout <= 30
        raise TimeoutError

    hub.requests.head = silence  # and there is no dataset_download: nobody must ask without a time limit
    with pytest.raises(DataError, match="Kaggle does not answer: check the network, or download it by hand"):
        train_module._locate(["kaggle"], tmp_path)
