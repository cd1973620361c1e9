"""Manifests: what stands in them becomes films and boxes, and what is wrong is one sentence with the line."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pneumo_edge.errors import DataError, MissingExtraError, PneumoError
from pneumo_train.films import Box, FilmFile
from pneumo_train.manifest import find_manifest, read_manifest
from pneumo_train.sources import gather

CLASSES = {"NORMAL": 0, "PNEUMONIA": 1}

Rows = Sequence[Mapping[str, object]]
WriteTable = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> WriteTable:
    """Writes a manifest or another table of the folder "set", and the files that it names, and returns its path."""

    def written(rows: Rows | str, name: str = "films.csv") -> Path:
        folder = tmp_path / "set"
        folder.mkdir(exist_ok=True)
        path = folder / name
        if isinstance(rows, str):
            path.write_bytes(rows.encode())
            return path
        table(path, rows)
        for row in rows:
            film = folder / str(row.get("path") or "nameless").replace("\\", "/")
            film.parent.mkdir(parents=True, exist_ok=True)
            film.touch()
        return path

    return written


def table(path: Path, rows: Rows) -> None:
    """Writes CSV or Parquet, by the suffix."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".parquet":
        pa = pytest.importorskip("pyarrow", reason="needs pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({name: [row.get(name) for row in rows] for name in columns}), path)
    else:
        with path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(rows)


def refused(path: Path, **options: Any) -> str:
    """Returns the sentence with which a manifest is refused."""
    with pytest.raises(DataError) as error:
        read_manifest(path, CLASSES, **options)
    text = str(error.value)
    assert "\n" not in text
    return text


TWO = ({"path": "a.png", "label": "NORMAL"}, {"path": "b/c.png", "label": "PNEUMONIA"})


# ---------------------------------------------------------------------------------------------- what is read from it


@pytest.mark.parametrize("name", ["films.csv", "films.parquet", "any name.CSV"])
def test_the_least_that_a_manifest_says_is_path_and_label(write: WriteTable, name: str) -> None:
    path = write(TWO, name)
    films, remarks = read_manifest(path, CLASSES)
    # Nobody said whose films they are: each is a patient's own.
    assert films == [
        FilmFile("a.png", 0, "set:a.png", "train", "set"),
        FilmFile("b/c.png", 1, "set:b/c.png", "train", "set"),
    ]
    assert remarks == []
    assert read_manifest(path, CLASSES, site="north")[0][0].site == "north"


@pytest.mark.parametrize("name", ["films.csv", "films.parquet"])
def test_all_that_a_manifest_says_is_kept(write: WriteTable, name: str) -> None:
    row = {
        "path": "a.png", "label": "PNEUMONIA", "patient": "0012", "site": "north", "split": "test", "age": "7.5",
        "sex": "F", "view": "AP", "licence": "CC BY 4.0", "finding": "lobar", "source": "ward 3",
        "boxes": "0.1 0.2 0.3 0.4; 0.5 0.5 1 1",
    }  # fmt: skip
    empty = dict.fromkeys(row, "") | {"path": "b.png", "label": "NORMAL"}
    films, _ = read_manifest(write([row, empty], name), CLASSES, site="else")
    assert films == [
        FilmFile(
            "a.png", 1, "0012", "test", "north", patient_known=True, age=7.5, sex="F", view="AP", licence="CC BY 4.0",
            # split.csv has a column "source" of its own.
            other=(("finding", "lobar"), ("given_source", "ward 3")),
            boxes=(Box(0.1, 0.2, 0.3, 0.4), Box(0.5, 0.5, 1, 1)),
        ),
        FilmFile("b.png", 0, "else:b.png", "train", "else", other=(("finding", ""), ("given_source", ""))),
    ]  # fmt: skip


def test_numbers_and_gaps_of_parquet_are_what_a_csv_file_would_say(write: WriteTable) -> None:
    rows = [
        {"path": "a.png", "label": "NORMAL", "patient": 12, "age": 61, "view": None},
        {"path": "b.png", "label": "PNEUMONIA", "patient": 13, "age": None, "view": "PA"},
    ]
    films, _ = read_manifest(write(rows, "films.parquet"), CLASSES)
    assert [(f.patient, f.age, f.view) for f in films] == [("12", 61, ""), ("13", None, "PA")]


@pytest.mark.parametrize(
    ("said", "folder"),
    [("train", "train"), ("", "train"), ("val", "val"), ("validation", "val"), ("Test", "test")],
)
def test_the_split_is_that_of_the_folders(write: WriteTable, said: str, folder: str) -> None:
    films, _ = read_manifest(write([TWO[0] | {"split": said}, TWO[1]]), CLASSES)
    assert [film.folder for film in films] == [folder, "train"]


def test_what_spreadsheets_do_to_a_table_does_no_harm(write: WriteTable) -> None:
    path = write('\ufeffpath , label,note\r\nb\\c.png, PNEUMONIA ,"one\r\ntwo"\r\n\r\na.png,NORMAL,\r\n')
    (path.parent / "a.png").touch()
    (path.parent / "b").mkdir()
    (path.parent / "b" / "c.png").touch()
    films, _ = read_manifest(path, CLASSES)
    assert [(film.path, film.label, film.other) for film in films] == [
        ("b/c.png", 1, (("note", "one\r\ntwo"),)),
        ("a.png", 0, (("note", ""),)),
    ]


def test_a_folder_is_read_by_its_manifest(write: WriteTable, tmp_path: Path) -> None:
    path = write(TWO)
    (path.parent / "train").mkdir()
    assert find_manifest(path.parent) == find_manifest(path) == path
    assert find_manifest(tmp_path) is None
    (tmp_path / "folder.csv").mkdir()
    assert find_manifest(tmp_path / "folder.csv") is None
    with pytest.raises(DataError, match=r"gone\.csv is not there: give a manifest, or a folder of films"):
        find_manifest(tmp_path / "gone.csv")


def test_labels_that_are_neither_are_counted_and_named_with_what_takes_them(write: WriteTable) -> None:
    rows = [*TWO, *({"path": f"{i}.png", "label": "COVID19"} for i in range(3)), {"path": "x.png", "label": "normal"}]
    path = write(rows)
    films, remarks = read_manifest(path, CLASSES)
    assert len(films) == 2
    assert remarks == [
        f"{path}: not used: 3 films labelled COVID19 (the first in line 4): take them with --label COVID19=PNEUMONIA "
        "or NORMAL",
        f"{path}: not used: 1 films labelled normal (the first in line 7): take them with --label normal=PNEUMONIA or "
        "NORMAL",
    ]
    films, remarks = read_manifest(path, CLASSES | {"COVID19": 1, "normal": 0})
    assert [film.label for film in films] == [0, 1, 1, 1, 1, 0]
    assert remarks == []
    text = refused(write([{"path": "a.png", "label": "ill"}]))
    assert "names no film with a label that is NORMAL or PNEUMONIA" in text
    assert "1 films labelled ill (the first in line 2)" in text


# --------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("rows", "line", "sentence"),
    [
        ([{"path": "a.png", "label": ""}], 2, "the label is empty: say NORMAL or PNEUMONIA"),
        ([TWO[0], {"path": "", "label": "NORMAL"}], 3, "the path is empty"),
        ([*TWO, TWO[0]], 4, "a.png stands in line 2 already: keep one of the two rows"),
        ([TWO[0] | {"split": "holdout"}], 2, "the split 'holdout' is none of train, val and test"),
        ([TWO[0] | {"age": "old"}], 2, "the age 'old' is no number of years from 0 to 130: leave it empty"),
        ([TWO[0] | {"age": "061Y"}], 2, "the age '061Y' is no number of years"),
        ([TWO[0] | {"age": "-1"}], 2, "the age '-1' is no number of years"),
        ([TWO[0] | {"age": "nan"}], 2, "the age 'nan' is no number of years"),
        (
            [TWO[0] | {"patient": "7", "site": "north"}, TWO[1] | {"patient": "7", "site": "south"}],
            3,
            "the patient 7 is at the site south, and in line 2 at north: give patients of two sites two names",
        ),
        ([TWO[1] | {"boxes": "0.1 0.2 0.3"}], 2, "the box 0.1 0.2 0.3 is no four numbers, x0 y0 x1 y1"),
        ([TWO[1] | {"boxes": "0 0 1 1;1,2"}], 2, "the box 1,2 is no four numbers"),
        ([TWO[1] | {"boxes": "0 0 120 400"}], 2, "the box 0 0 120 400 leaves the film: sides are shares of its width"),
        ([TWO[1] | {"boxes": "0.5 0.1 0.5 0.9"}], 2, "the box 0.5 0.1 0.5 0.9 has no area: x0 < x1 and y0 < y1"),
        ([TWO[1] | {"boxes": "0.5 0.1 nan 0.9"}], 2, "the box 0.5 0.1 nan 0.9 leaves the film"),
        ([TWO[0] | {"boxes": "0 0 1 1"}], 2, "a film with boxes is labelled NORMAL: correct one of the two"),
    ],
    ids=lambda value: value.split(":")[0] if isinstance(value, str) else "",
)
@pytest.mark.parametrize("name", ["films.csv", "films.parquet"])
def test_a_wrong_row_is_a_sentence_with_its_line(
    write: WriteTable, name: str, rows: Rows, line: int, sentence: str
) -> None:
    path = write(rows, name)
    assert refused(path).startswith(f"{path}, line {line}: {sentence}")


@pytest.mark.parametrize("name", ["b.png", "../b.png", "b" * 300 + ".png", "b\0.png"])
def test_a_film_that_is_not_there_is_named_with_its_line(write: WriteTable, name: str) -> None:
    path = write([{"path": "a.png", "label": "NORMAL"}])
    table(path, [{"path": "a.png", "label": "NORMAL"}, {"path": name, "label": "NORMAL"}])
    text = refused(path)
    # Python's CSV reader has taken a zero byte since 3.11 only in some versions; both are a sentence.
    assert text.startswith((f"{path}, line 3: ", f"{path} is no CSV file"))
    assert "is not there: paths are relative to the manifest" in text or "\0" in name


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", " has no column path and no column label: its first line must name the columns"),
        ("path,class\na.png,NORMAL\n", " has no column label: its first line must name the columns, path, label among"),
        ("path;label\na.png;NORMAL\n", " has no column path and no column label"),
        ("path,label,note,note\na.png,NORMAL,,\n", " has two columns of one name: path, label, note, note"),
        ("path,label\na.png,NORMAL\nb.png\n", ", line 3: 1 cells where the header has 2"),
        ("path,label\na.png,NORMAL,more\n", ", line 2: 3 cells where the header has 2"),
        ("path,label\n", " names no film with a label that is NORMAL or PNEUMONIA"),
        ('path,label\n"a\nb.png",NORMAL\n', ", line 3: 'a\\nb.png' has a line break in its name: rename it"),
        ("path,label\n" + "x" * 200_000 + ",NORMAL\n", " is no CSV file that can be read (field larger than"),
    ],
)
def test_a_broken_table_is_a_sentence(write: WriteTable, content: str, sentence: str) -> None:
    path = write(content)
    (path.parent / "a.png").touch()
    assert refused(path).startswith(f"{path}{sentence}")


def test_a_table_that_is_none_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "films.csv"
    path.write_bytes("path,label\nBücher.png,NORMAL\n".encode("latin-1"))
    assert "is no UTF-8 text: save it as CSV in UTF-8" in refused(path)
    pytest.importorskip("pyarrow", reason="needs pyarrow")
    path = tmp_path / "films.parquet"
    for content in (b"", b"PAR1", b"path,label\na.png,NORMAL\n"):
        path.write_bytes(content)
        assert "is no Parquet file that can be read" in refused(path)
    table(path, [{"path": "a.png", "class": "NORMAL"}])
    assert refused(path).endswith("has no column label: it has path, class")


def test_parquet_without_pyarrow_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "films.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(MissingExtraError, match=r"pyarrow: pip install 'pneumo\[train\]'"):
        read_manifest(tmp_path / "films.parquet", CLASSES)


@settings(deadline=None, max_examples=60)
@given(st.binary(max_size=300) | st.text(max_size=200).map(str.encode))
@pytest.mark.parametrize("name", ["films.csv", "films.parquet", "boxes.csv"])
def test_whatever_stands_in_a_table_it_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes
) -> None:
    folder = tmp_path_factory.mktemp("set")
    (folder / "a.png").touch()
    (folder / "films.csv").write_text("path,label\na.png,PNEUMONIA\n")
    (folder / name).write_bytes((b"path,label\n" if name == "films.csv" else b"path,x0,y0,x1,y1\n") + content)
    try:
        films, _ = read_manifest(folder / ("films.csv" if name == "boxes.csv" else name), CLASSES)
    except PneumoError as error:
        assert str(error)
        assert str(folder / name) in str(error)
    else:
        assert {film.path for film in films} == {"a.png"}


# ------------------------------------------------------------------------------------------------------------- boxes


def boxes_file(manifest: Path, *lines: str) -> Path:
    path = manifest.parent / "boxes.csv"
    path.write_text("\n".join(["path,x0,y0,x1,y1", *lines]) + "\n")
    return path


def test_boxes_stand_beside_the_manifest(write: WriteTable) -> None:
    path = write(TWO)
    boxes_file(path, "b/c.png,0.1,0.2,0.3,0.4", "b\\c.png,0,0,1,1")
    films, remarks = read_manifest(path, CLASSES)
    assert [film.boxes for film in films] == [(), (Box(0.1, 0.2, 0.3, 0.4), Box(0, 0, 1, 1))]
    assert remarks == []


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a.png,0.1,0.2,0.3,0.4", "a.png has a box, and line 2 of the manifest labels it NORMAL: correct one of the"),
        ("b/c.png,0.1,0.2,1.3,0.4", "the box 0.1 0.2 1.3 0.4 leaves the film: sides are shares"),
        ("b/c.png,-0.1,0.2,0.3,0.4", "the box -0.1 0.2 0.3 0.4 leaves the film"),
        ("b/c.png,0.3,0.2,0.3,0.4", "the box 0.3 0.2 0.3 0.4 has no area"),
        ("b/c.png,0.1,0.4,0.3,0.2", "the box 0.1 0.4 0.3 0.2 has no area"),
        ("b/c.png,0.1,left,0.3,0.4", "the box 0.1 left 0.3 0.4 is no four numbers"),
        ("b/c.png,0.1,0.2,inf,0.4", "the box 0.1 0.2 inf 0.4 leaves the film"),
        ("other/set.png,0.1,0.2,0.3,0.4", "SET/other/set.png is not there"),
        (",0.1,0.2,0.3,0.4", "the path is empty"),
        ("b/c.png,0.1,0.2,0.3", "4 cells where the header has 5"),
    ],
)
def test_a_wrong_box_is_a_sentence_with_its_line(write: WriteTable, row: str, sentence: str) -> None:
    path = write(TWO)
    boxes = boxes_file(path, "b/c.png,0.1,0.2,0.3,0.4", row)
    assert refused(path).startswith(f"{boxes}, line 3: {sentence.replace('SET', str(path.parent))}")


def test_a_boxes_file_of_another_kind_is_refused(write: WriteTable) -> None:
    path = write(TWO)
    boxes = path.parent / "boxes.csv"
    boxes.write_text("path,x,y,width,height\nb/c.png,1,2,3,4\n")
    assert refused(path).startswith(f"{boxes} has no column x0 and no column y0")
    boxes_file(write([TWO[0], TWO[1] | {"boxes": "0 0 1 1"}]), "b/c.png,0,0,1,1")
    assert "line 3 gives boxes, and so does" in refused(path)


def test_boxes_of_films_that_are_not_used_are_counted(write: WriteTable) -> None:
    path = write([*TWO, {"path": "d.png", "label": "COVID19"}])
    (path.parent / "e.png").touch()
    boxes = boxes_file(path, "d.png,0,0,1,1", "e.png,0,0,1,1", "b/c.png,0,0,1,1")
    films, remarks = read_manifest(path, CLASSES)
    assert [len(film.boxes) for film in films] == [0, 1]
    assert remarks[-1] == f"{boxes}: not used: 2 boxes of films that are not used"


# ----------------------------------------------------------------------------------------------------- several of them


def test_a_manifest_may_hold_several_sites_and_stand_beside_other_sets(write: WriteTable, tmp_path: Path) -> None:
    rows = [row | {"site": site, "path": f"{site}/{row['path']}", "licence": f"terms of {site}"}
            for site in ("north", "south") for row in TWO]  # fmt: skip
    path = write(rows)
    more = tmp_path / "more"
    more.mkdir()
    for row in TWO:
        (more / str(row["path"])).parent.mkdir(exist_ok=True)
        (more / str(row["path"])).touch()
    table(more / "films.csv", [row | {"patient": f"p{i}", "licence": "free"} for i, row in enumerate(TWO)])
    found = gather([str(path), f"east={more}"], licences={"south": "mine"})
    assert [(film.site, film.source) for film in found.films] == [
        ("north", 0), ("north", 0), ("south", 0), ("south", 0), ("east", 1), ("east", 1),
    ]  # fmt: skip
    assert found.roots == (path.parent, more)
    assert found.licences == {"north": "terms of north", "south": "mine", "east": "free"}
    assert found.sources == {"north": "north", "south": "south", "east": "east"}
    assert not found.remarks

    table(more / "films.csv", [row | {"site": "south"} for row in TWO])
    with pytest.raises(DataError, match=r"both hold films of a site named 'south'.* or in its column site"):
        gather([str(path), f"east={more}"])


def test_patients_of_one_name_in_two_manifests_are_the_same_and_it_is_said(write: WriteTable, tmp_path: Path) -> None:
    rows = [row | {"patient": f"p{i}"} for i, row in enumerate(TWO)]
    path = write(rows)
    other = tmp_path / "other"
    path.parent.rename(other)
    path = write([*rows, {"path": "d.png", "label": "NORMAL", "patient": "p9"}])
    found = gather([str(path), str(other)])
    assert found.remarks == (
        f"2 patients stand by name in {path} and in {other}, and count as the same ones: if they are not, give them "
        "other names",
    )
