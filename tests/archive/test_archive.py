"""What pneumo-archive is made of, without a cluster: listing, plan, rows, work, counts, report."""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import socket
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from places import ROOT
from pneumo_edge import __version__
from pneumo_edge.classifier import Classifier
from pneumo_edge.errors import BundleError, DataError, ImageError, UsageError
from pneumo_edge.film_files import files_like, is_film_by_name, is_left_behind
from pneumo_train.phantom import draw_phantoms

pytest.importorskip("distributed", reason="the extra archive is not installed")

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.memory import MemoryFileSystem

from pneumo_edge.archive import counts, plan, schema, work
from pneumo_edge.archive.counts import Counts, count_rows, kind_of
from pneumo_edge.archive.drive import Outcome, _compare
from pneumo_edge.archive.listing import film_url, open_source
from pneumo_edge.archive.places import Store, fetch, open_url
from pneumo_edge.archive.plan import Description, Plan, read_description, write_description
from pneumo_edge.archive.report import sentence, write_report
from pneumo_edge.archive.work import Job, bundle_sha256, check, do_part
from pneumo_edge.bundle import Reference

PAGE = (ROOT / "docs" / "archive.md").read_text(encoding="utf-8")

posix = pytest.mark.skipif(os.name != "posix", reason="names of any bytes are POSIX's")

FEW = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def save(path: Path, mean: int = 150) -> Path:
    """Writes a grey picture, 128 x 128, that the tiny model calls PNEUMONIA if `mean` is 112 or more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.full((128, 128), mean - 24, np.uint8)
    grey[:, 64:] = mean + 24
    Image.fromarray(grey).save(path, format="PNG")
    return path


def listed(source: str | Path, where: str = "local") -> list[str]:
    return [path for batch in open_source(str(source), where).batches for path in batch["path"].to_pylist()]


def raw_names(source: Path) -> list[bytes]:
    """The names as the file system has them, from the listing."""
    batches = open_source(str(source)).batches
    return [path for batch in batches for path in plan._raw_paths(batch)]


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """fsspec's file system in memory, empty."""
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


# ------------------------------------------------------------------------------------------------------ listing

TREE = (
    "a.png", "a/b.PNG", "a-b/c.dcm", "a/1.2.840.10008.5", "a/scan", "a/notes.txt", "a/DICOMDIR", "z/y/x/deep.jpeg",
    ".hidden/a.png", "__MACOSX/a.png", "a/._b.png", "z/.DS_Store", "out/films/part-0000000.parquet", "[odd] $ü*.tif",
)  # fmt: skip
FILMS = [
    "[odd] $ü*.tif", "a-b/c.dcm", "a.png", "a/1.2.840.10008.5", "a/b.PNG", "a/scan", "z/y/x/deep.jpeg",
]  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tree" / name).write_bytes(b"not opened")
    return tmp_path / "tree"


def test_a_folder_is_searched_to_any_depth_in_the_order_of_the_paths(tree: Path) -> None:
    assert listed(tree) == [f"{tree}/{name}" for name in FILMS]
    assert listed(tree) == sorted(listed(tree))
    assert open_source(str(tree)).name == str(tree)


def test_a_path_becomes_absolute_and_a_single_film_is_an_archive_too(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    assert listed(".") == listed("../tree/") == listed(tree)
    assert listed("a/notes.txt") == [f"{tree}/a/notes.txt"]
    assert listed(f"file://{tree}/a.png") == [f"file://{tree}/a.png"]


@posix
def test_links_pipes_and_folders_that_cannot_be_read(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "round").symlink_to(tree)
    (tree / "dead.png").symlink_to("nowhere")
    os.mkfifo(tree / "pipe.png")
    closed = tree / "closed"
    closed.mkdir()
    # As root everything can be searched: a folder that goes while it is listed says no by other means.
    source = open_source(str(tree))
    found = source.batches
    shutil.rmtree(closed)
    assert [p for b in found for p in b["path"].to_pylist()] == sorted(f"{tree}/{n}" for n in [*FILMS, "dead.png"])
    assert source.unlisted == []
    links = "links to folders, which are not followed: give those folders as a SOURCE of their own"
    assert source.passed_over[links] == 1
    assert source.passed_over["pipes and devices"] == 1
    capsys.readouterr()
    gone = open_source(f"{tree}/none/*.png")
    assert list(gone.batches) == []
    assert gone.unlisted == [f"{tree}/none"]
    assert "cannot be searched for films: No such file" in capsys.readouterr().err


def test_what_is_not_listed_is_counted_by_its_ending(tmp_path: Path) -> None:
    for name in (
        "a.png",
        "1.2.840.5",
        "IM0001",
        "b.txt",
        "c.TXT",
        "d/e.xml",
        "DICOMDIR",
        ".hidden.txt",
        "__MACOSX/f.txt",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    source = open_source(str(tmp_path))
    assert sum(len(batch) for batch in source.batches) == 3
    assert source.passed_over == {"files called *.txt": 2, "files called *.xml": 1, "files called DICOMDIR": 1}
    for i in range(100):  # however many endings there are, few are told apart
        (tmp_path / f"x.end{i:03d}").touch()
    source = open_source(str(tmp_path))
    assert sum(len(batch) for batch in source.batches) == 3
    assert sum(source.passed_over.values()) == 104
    assert len(source.passed_over) == 21
    assert source.passed_over["files whose names are those of no film"] > 80


PATTERNS = (
    "*",
    "*.png",
    "**/*.png",
    "a*/*",
    "**",
    "[az]/**",
    "a/?.PNG",
    "**/y/**/*.jpeg",
    "z/*/x/*",
    "a**/*.dcm",
    "q*",
)


@posix
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_glob_finds_what_pneumo_infer_finds(tree: Path, pattern: str) -> None:
    expected = [path for path in files_like(f"{tree}/{pattern}") if Path(path).is_file()]
    assert listed(f"{tree}/{pattern}") == sorted(expected)
    assert expected or pattern == "q*"


def test_a_url_is_searched_like_a_folder(memory: MemoryFileSystem) -> None:
    for name in TREE:
        memory.pipe_file(f"/bucket/tree/{name}", b"")
    assert listed("memory://bucket/tree") == [f"memory://bucket/tree/{name}" for name in FILMS]
    assert listed("memory://bucket/tree/a*/*") == [
        f"memory://bucket/tree/{name}" for name in ("a-b/c.dcm", "a/1.2.840.10008.5", "a/DICOMDIR", "a/b.PNG",
                                                    "a/notes.txt", "a/scan")
    ]  # fmt: skip
    assert listed("memory://bucket/tree/a.png") == ["memory://bucket/tree/a.png"]


@posix
@FEW
@given(
    st.sets(
        st.binary(min_size=1, max_size=30).filter(lambda n: not set(n) & {0, 47} and n not in {b".", b".."}), max_size=8
    )
)
def test_names_of_any_bytes_are_listed_and_can_be_opened_again(tmp_path: Path, names: set[bytes]) -> None:
    folder = tmp_path / "wild"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name in names:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(b"film")
    texts = {name: os.fsdecode(name) for name in names}
    expected = {n for n, text in texts.items() if not is_left_behind(text) and is_film_by_name(text) is not False}
    found = raw_names(folder)
    assert set(found) == {os.fsencode(folder) + b"/" + name for name in expected}
    assert all(fetch(os.fsdecode(path), "film") == b"film" for path in found)
    # What readers see is text, and tells the films apart.
    shown = listed(folder)
    assert len(set(shown)) == len(expected)
    assert all(path.encode() for path in shown)


def test_what_is_not_there_is_said(tmp_path: Path, tree: Path, memory: MemoryFileSystem) -> None:
    for source in (f"{tmp_path}/none", "memory://none/at/all"):
        with pytest.raises(UsageError, match=re.escape(f"{source} does not exist: give a folder")):
            open_source(source)
    with pytest.raises(UsageError, match=r"nosuch://x cannot be opened: Protocol not known: nosuch"):
        open_source("nosuch://x")
    with pytest.raises(UsageError, match=r"--where s3 is for the paths in a manifest: give SOURCE itself as s3://"):
        open_source(str(tree), "s3")
    assert listed(tmp_path / "tree" / "out") == []


# ------------------------------------------------------------------------------------------------------ manifests


def test_a_csv_keeps_its_values_as_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = '\ufeffpatient,path,"remark"\n00123,a.png,"two\nlines, and ""quotes"""\n,/b/ü.png,NA\n7,,\n1e5,s3://b/c,\n'
    manifest = tmp_path / "films.csv"
    manifest.write_text(text, encoding="utf-8")
    source = open_source(str(manifest))
    table = pa.Table.from_batches(source.batches)
    assert table.drop_columns(["path_bytes"]).to_pydict() == {
        "path": ["a.png", "/b/ü.png", "s3://b/c"],
        "patient": ["00123", "", "1e5"],
        "remark": ['two\nlines, and "quotes"', "NA", ""],
    }
    assert "1 rows name no film" in capsys.readouterr().err
    assert source.base == str(tmp_path)


def test_a_parquet_manifest_keeps_its_types(tmp_path: Path, memory: MemoryFileSystem) -> None:
    columns = {
        "path": pa.array(["x/a.png", None, "b.png"], pa.large_string()),
        "age": pa.array([1, 2, None], pa.int8()),
        "site": pa.array(["n", "s", "n"]).dictionary_encode(),
        "tags": pa.array([["a"], [], None], pa.list_(pa.string())),
        "seen": pa.array([0, 1, 2], pa.timestamp("us", "UTC")),
    }
    pq.write_table(pa.table(columns), tmp_path / "films.parquet")
    memory.pipe_file("/bucket/films.parquet", (tmp_path / "films.parquet").read_bytes())
    for name in (str(tmp_path / "films.parquet"), "memory://bucket/films.parquet"):
        source = open_source(name)
        table = pa.Table.from_batches(source.batches)
        assert table["path"].to_pylist() == ["x/a.png", "b.png"]
        assert table["age"].to_pylist() == [1, None]
        assert table["site"].to_pylist() == ["n", "n"]
        assert [str(kind) for kind in source.columns.types] == [
            "int8", "string", "list<element: string>", "timestamp[us, tz=UTC]",
        ]  # fmt: skip
        assert source.base == name.rsplit("/", 1)[0]


@pytest.mark.parametrize(
    ("header", "error"),
    [
        ("path,label", "the column label is a column of the result too"),
        ("path,Probability", "the column Probability is a column of the result too"),
        ("path,path_bytes", "the column path_bytes is a column of the result too"),
        ("path,PATH", "the column PATH is a column of the result too"),
        ("path,site,Site", "the column Site stands there twice"),
        ("path,a,a", "the column a stands there twice"),
        ("path,path", "must have one column called path"),
        ("path;patient", "must have one column called path, with commas between columns: it has path;patient"),
        ("film", "must have one column called path"),
    ],
)
def test_columns_that_cannot_stand_in_the_result_are_refused(tmp_path: Path, header: str, error: str) -> None:
    manifest = tmp_path / "films.csv"
    manifest.write_text(header + "\n" + ",".join("x" for _ in header.split(",")) + "\n")
    with pytest.raises(UsageError, match=re.escape(error)):
        open_source(str(manifest))


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("films.csv", b""),
        ("films.csv", b"path,site\na.png,b\nc.png\n"),
        ("films.csv", b"path\n\xfcber.png\n"),
        ("films.parquet", b"PAR1 no Parquet"),
    ],
)
def test_a_broken_manifest_is_one_sentence(tmp_path: Path, name: str, data: bytes) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=re.escape(f"{tmp_path / name} cannot be read")) as caught:
        list(open_source(str(tmp_path / name)).batches)
    assert "\n" not in str(caught.value)


def test_paths_must_be_text_and_the_protocol_known(tmp_path: Path) -> None:
    pq.write_table(pa.table({"path": [1, 2]}), tmp_path / "films.parquet")
    with pytest.raises(UsageError, match="the column path holds int64, not text"):
        open_source(str(tmp_path / "films.parquet"))
    (tmp_path / "films.csv").write_text("path\na\n")
    with pytest.raises(UsageError, match="Protocol not known: nosuch"):
        open_source(str(tmp_path / "films.csv"), "nosuch")


@pytest.mark.parametrize(
    ("path", "where", "url"),
    [
        ("a/b.png", "local", "/manifests/a/b.png"),
        ("/a/b.png", "local", "/a/b.png"),
        ("s3://bucket/b", "local", "s3://bucket/b"),
        ("bucket/b", "s3", "s3://bucket/b"),
        ("file:///b", "s3", "file:///b"),
        ("a::b://c", "local", "/manifests/a::b://c"),
    ],
)
def test_where_the_films_of_a_manifest_lie(path: str, where: str, url: str) -> None:
    assert film_url(path, where, "/manifests") == url
    assert film_url("b.png", "local", "s3://bucket/x") == "s3://bucket/x/b.png"


# ------------------------------------------------------------------------------------------------------ the plan


def batch_of(paths: list[str], columns: dict[str, list[Any]] | None = None) -> pa.RecordBatch:
    arrays = [pa.array(paths, pa.string()), pa.nulls(len(paths), pa.binary())]
    return pa.record_batch([*arrays, *(columns or {}).values()], ["path", "path_bytes", *(columns or {})])


def planned(store: Store, batch: int) -> dict[int, list[str]]:
    return {part: table["path"].to_pylist() for part, table in Plan(store, batch).parts()}


@FEW
@given(
    paths=st.lists(st.text(min_size=1, max_size=3), max_size=60),
    chunk=st.integers(1, 20),
    batch=st.integers(1, 7),
    stops=st.lists(st.integers(0, 8), max_size=3),
)
def test_a_plan_that_was_interrupted_anywhere_ends_the_same(
    memory: MemoryFileSystem,
    monkeypatch: pytest.MonkeyPatch,
    paths: list[str],
    chunk: int,
    batch: int,
    stops: list[int],
) -> None:
    monkeypatch.setattr(plan, "_PARTS_IN_FILE", 3)
    batches = [batch_of(paths[i : i + chunk]) for i in range(0, len(paths), chunk)]
    memory.store.clear()
    undisturbed, disturbed = Store("memory://a"), Store("memory://b")
    for _ in Plan(undisturbed, batch).extend(batches):
        pass
    for stop in stops:
        for done, _ in enumerate(Plan(disturbed, batch).extend(batches)):
            if done == stop:
                break
        else:
            # Only what was planned whole: the last file is as long as the listing was.
            break
    for _ in Plan(disturbed, batch).extend(batches):
        pass
    found = planned(disturbed, batch)
    assert found == planned(undisturbed, batch)
    assert [path for part in found.values() for path in part] == list(dict.fromkeys(paths))
    assert list(found) == list(range(len(found)))
    assert dict(Plan(disturbed, batch).sizes()) == {part: len(films) for part, films in found.items()}
    assert Plan(disturbed, batch).films == len(set(paths))


def test_new_films_get_new_parts_and_old_ones_keep_theirs(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    list(Plan(store, 2).extend([batch_of(["b", "d", "f"])]))
    list(Plan(store, 2).extend([batch_of(["a", "b", "c", "d", "e", "f", "a"])]))
    list(Plan(store, 2).extend([batch_of(["a", "b"])]))
    assert planned(store, 2) == {0: ["b", "d"], 1: ["f"], 2: ["a", "c"], 3: ["e"]}


def test_the_manifests_columns_and_odd_names_stand_in_the_plan(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    odd = pa.record_batch([["x\\udcfc"], [b"x\xfc"], [3]], ["path", "path_bytes", "age"])
    list(Plan(store, 2).extend([batch_of(["x"], {"age": pa.array([2])}), odd, odd]))
    [(part, films)] = Plan(store, 2).parts()
    assert (part, films["age"].to_pylist(), films["path_bytes"].to_pylist()) == (0, [2, 3], [None, b"x\xfc"])


@given(st.lists(st.lists(st.binary(max_size=2), max_size=30), max_size=12))
def test_known_paths_are_a_set(chunks: list[list[bytes]]) -> None:
    known, seen = plan._Known(), set[bytes]()
    for chunk in chunks:
        expected = [path not in seen and path not in chunk[:i] for i, path in enumerate(chunk)]
        assert known.add(chunk).tolist() == expected
        seen.update(chunk)
    # A path is looked up in few places.
    assert len(known._runs) <= math.log2(len(seen) + 1) + 1


def test_a_damaged_plan_is_one_sentence(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    list(Plan(store, 2).extend([batch_of(["a"])]))
    (tmp_path / "plan" / "part-0000000.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"part-0000000.parquet is damaged: give --output a new folder"):
        Plan(store, 2)


def test_the_description_is_read_strictly(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    assert read_description(store) is None
    write_description(store, DESCRIPTION)
    assert read_description(store) is None, "nothing is planned yet: it binds nobody"
    store.write("plan/part-0000000.parquet", b"")
    assert read_description(store) == DESCRIPTION
    for text in ("{", "[]", json.dumps(vars(DESCRIPTION) | {"more": 1})):
        store.write(plan.DESCRIPTION, text.encode())
        with pytest.raises(DataError, match=r"archive.json is damaged"):
            read_description(store)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.docx").touch()
    with pytest.raises(UsageError, match="holds other files: give --output a new folder"):
        read_description(Store(str(tmp_path / "other")))


DESCRIPTION = Description(
    schema_version=1, preprocess_version=1, note="", pneumo="0.1.0", source="/films", where="local", base="",
    columns={"age": "int8"}, batch=500, model="tiny", file="model.onnx", bundle_sha256="0" * 64,
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"source": "/others"}, "holds the films of /films"),
        ({"where": "s3"}, "was begun with --where local"),
        ({"columns": {}}, "was begun with other columns in the manifest (age)"),
        ({"batch": 7}, "has 500 films in a part"),
        ({"model": "other", "file": "x", "bundle_sha256": "1"}, "was begun with the model tiny (model.onnx)"),
        ({"file": "model.int8.onnx"}, "was begun with model.onnx of the model tiny"),
        ({"bundle_sha256": "1"}, "was begun with another bundle of the name tiny"),
        ({"preprocess_version": 2}, "was begun by pneumo 0.1.0, which reads films in another way"),
        ({"schema_version": 2}, "was begun by pneumo 0.1.0, which reads films in another way"),
    ],
)
def test_a_dataset_is_continued_as_it_was_begun(change: dict[str, Any], error: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"/out {error}: give the same again, or another folder")):
        _compare(replace(DESCRIPTION, **change), DESCRIPTION, "/out")
    _compare(replace(DESCRIPTION, pneumo="9.9.9"), DESCRIPTION, "/out")


# ------------------------------------------------------------------------------------------------------ places


def test_a_file_is_whole_or_not_there(tmp_path: Path, memory: MemoryFileSystem) -> None:
    for url in (str(tmp_path / "out"), "memory://bucket/out"):
        store = Store(url + "/")
        assert store.url == url
        assert (store.read("a/b"), store.names(), store.names("a")) == (None, [], [])
        for data in (b"one", b"the other"):
            store.write("a/b", data)
            assert (store.read("a/b"), store.names("a")) == (data, ["b"])
        store.clear_unfinished()
        assert store.names() == ["a"]


def test_a_write_that_fails_leaves_what_stood_and_nothing_for_readers(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (tmp_path / "films" / "part-0000000.parquet" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError, match="part-0000000"):
        store.write("films/part-0000000.parquet", b"new")
    assert store.names("films/part-0000000.parquet") == ["in the way"]
    assert (store.names("films"), store.names("unfinished")) == (["part-0000000.parquet"], [])


def test_where_there_is_a_rename_a_url_is_written_by_it(memory: MemoryFileSystem) -> None:
    class Renaming(MemoryFileSystem):  # type: ignore[misc]
        """As sftp and SMB are: a file that is being written can be seen."""

        protocol = "renaming"
        written: list[str] = []  # noqa: RUF012

        def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
            self.written.append(path)
            super().pipe_file(path, value, mode, **kwargs)

    fsspec.register_implementation("renaming", Renaming, clobber=True)
    store = Store("renaming://bucket/out")
    store.write("films/part-0000000.parquet", b"part")
    [path] = Renaming.written
    assert "/unfinished/" in path
    assert store.read("films/part-0000000.parquet") == b"part"


def test_films_are_fetched_with_the_words_of_pneumo_infer(tmp_path: Path, memory: MemoryFileSystem) -> None:
    memory.pipe_file("/b/a.png", b"film")
    memory.pipe_file("/b/empty", b"")
    assert fetch("memory://b/a.png", "x") == b"film"
    assert fetch("memory://b/empty", "x") == b""
    for url in ("memory://b/none.png", str(tmp_path / "none.png")):
        with pytest.raises(ImageError, match=r"^x does not exist: check the path$"):
            fetch(url, "x")
    with pytest.raises(ImageError, match=r"^x is a folder, not an image"):
        fetch(str(tmp_path), "x")
    name = tmp_path / "a::b ~.png"
    name.write_bytes(b"odd")
    assert fetch(str(name), "x") == fetch(f"file://{name}", "x") == b"odd"
    assert open_url("~/x")[1].endswith("/~/x")


# That of FTP, made by half, raises as it is taken apart.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_file_system_of_fsspec_opens_or_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some want arguments that no URL holds, some ask a host when they are made, and each fails in its own way."""

    def no_network(*_: object, **__: object) -> None:
        raise OSError("no network in tests")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    refused = set()
    for protocol in fsspec.available_protocols():
        for url in (f"{protocol}://host/films", f"{protocol}://", f"{protocol}://*.jpeg::films.zip"):
            try:
                open_url(url)
            except (UsageError, DataError) as error:
                refused.add(protocol)
                assert str(error).startswith(f"{url} cannot be opened")
                assert "\n" not in str(error)
    assert {"github", "zip", "reference", "ftp"} <= refused
    with pytest.raises(UsageError, match=r"'org' and 'repo'.*FSSPEC_GITHUB_\.\.\.\), or copy the films to a folder"):
        open_url("github://films")
    with pytest.raises(
        (DataError, UsageError), match=r"one file system within another \(::\) is not taken: unpack the films first"
    ):
        open_url("zip://*.jpeg::films.zip")


# ------------------------------------------------------------------------------------------------------ the rows


def test_parts_have_names_that_sort_and_nothing_else_is_a_part() -> None:
    assert schema.part_number(schema.part_name(1234567).removeprefix("films/")) == 1234567
    for other in ("part-1.parquet.tmp", "part-.parquet", "x-0000001.parquet", "0000001.parquet", "part-0000001.csv"):
        assert schema.part_number(other) is None


@pytest.fixture
def job(bundle: Path, tmp_path: Path) -> Job:
    """A job on an output that the driver has begun."""
    store = Store(str(tmp_path / "out"))
    write_description(store, DESCRIPTION)
    seen = hashlib.sha256(store.read(plan.DESCRIPTION) or b"").hexdigest()
    return Job(store.url, seen, __version__, str(bundle), "model.onnx", bundle_sha256(bundle), "local", "")


def test_where_the_bundle_has_a_local_map_its_regions_are_columns(job: Job, local_bundle: Path, tmp_path: Path) -> None:
    paths = [str(save(tmp_path / f"{mean}.png", mean)) for mean in (60, 150)] + [str(tmp_path / "none.png")]
    bundled = replace(job, bundle=str(local_bundle), bundle_sha256=bundle_sha256(local_bundle), regions=True)
    do_part(bundled, 0, part_of(paths, site=pa.array(list("abc"))))
    table, _ = schema.from_parquet(Store(job.output).read(schema.part_name(0)) or b"")
    assert table.column_names[-7:] == [
        "part", "region_outlines", "region_area", "region_strongest", "site", "read_ms", "infer_ms",
    ]  # fmt: skip
    with Classifier.load(local_bundle) as classifier:
        expected = [answer.record() for answer in classifier.predict_batch(paths[:2])]
    for row, record in zip(table.to_pylist(), expected, strict=False):
        region = record["region"]
        assert (row["region_outlines"], row["region_area"]) == (len(region["polygons"]), region["area"])
        assert row["region_strongest"] == region["strongest"]
    assert table["region_outlines"].to_pylist() == [0, 1, None]
    assert table["region_strongest"].null_count == 1
    # A part of failures alone has the columns too.
    do_part(bundled, 1, part_of(paths[2:], site=pa.array(["c"])))
    failed, _ = schema.from_parquet(Store(job.output).read(schema.part_name(1)) or b"")
    assert failed.schema.equals(table.schema)


def part_of(paths: list[str], **columns: list[Any]) -> pa.Table:
    return pa.Table.from_batches([batch_of(paths, columns)])


def test_a_part_holds_the_records_of_its_films_in_their_order(job: Job, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    paths = [str(save(tmp_path / f"{mean}.png", mean)) for mean in (60, 150, 40)]
    paths[1:1] = [str(tmp_path / "none.png"), str(tmp_path / "text.png")]
    done = do_part(job, 3, part_of(paths, site=pa.array(list("abcde"))))
    table, facts = schema.from_parquet(Store(job.output).read(schema.part_name(3)) or b"")
    assert table.column_names == [
        "path", "label", "probability", "logit", "threshold", "operating_point", "prevalence", "novelty",
        "in_distribution", "warnings", "model", "file", "contrast", "error", "part", "site", "read_ms", "infer_ms",
    ]  # fmt: skip
    with Classifier.load(bundle) as classifier:
        expected = [answer.record() for answer in classifier.predict_batch(paths)]
    for row, record in zip(table.to_pylist(), expected, strict=True):
        record.pop("milliseconds", None)
        assert record.pop("region", None) is None
        for name, value in record.items():
            assert row.pop(name) == (list(value) if isinstance(value, tuple) else value)
        if "error" in record:
            assert (row.pop("read_ms"), row.pop("infer_ms")) == (None, None)
        else:
            assert row.pop("read_ms") > 0
            assert row.pop("infer_ms") > 0
        assert row.pop("part") == 3
        assert row.pop("site")
        assert set(row.values()) <= {None}
    assert table["site"].to_pylist() == list("abcde")
    assert facts == {
        "schema_version": "2", "note": "For education and research. Not a diagnosis.", "version": __version__,
        "file": "model.onnx", "bundle_sha256": job.bundle_sha256, "again": "1",
    }  # fmt: skip
    assert (done.judged, done.counts.films, dict(done.counts.verdicts)) == (
        5, 5, {"NORMAL": 2, "PNEUMONIA": 1, "failed": 2},
    )  # fmt: skip
    assert pickle.loads(pickle.dumps(done)) == done  # noqa: S301 - what Dask does with it


def test_a_part_that_stands_is_not_done_again_unless_a_film_was_not_there(job: Job, tmp_path: Path) -> None:
    late = tmp_path / "late.png"
    films = part_of([str(save(tmp_path / "a.png")), str(late)])
    assert do_part(job, 0, films).counts.errors == {"does not exist: check the path": 1}
    save(late)
    mended = do_part(job, 0, films)
    assert (mended.judged, mended.counts.verdicts) == (2, {"PNEUMONIA": 2})
    late.unlink()
    kept = do_part(job, 0, films)
    assert (kept.judged, kept.counts) == (0, mended.counts)


def test_a_part_whose_films_wait_for_a_package_is_done_again(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "film").write_bytes(bytes(128) + b"DICM" + bytes(100))
    films = part_of([str(tmp_path / "film")])
    with monkeypatch.context() as patch:
        patch.setitem(__import__("sys").modules, "pydicom", None)
        assert do_part(job, 0, films).judged == 1
        assert do_part(job, 0, films).judged == 1


def test_a_part_that_is_not_of_this_plan_is_not_overwritten(job: Job, tmp_path: Path) -> None:
    films = part_of([str(save(tmp_path / "a.png"))])
    do_part(job, 0, films)
    with pytest.raises(DataError, match=r"part-0000000.parquet is not the part that the plan says: remove it"):
        do_part(job, 0, part_of([str(tmp_path / "b.png")]))
    part = tmp_path / "out" / "films" / "part-0000000.parquet"
    part.write_bytes(part.read_bytes()[:-20])
    with pytest.raises(DataError, match="is not the part"):
        do_part(job, 0, films)


def test_a_worker_that_does_not_have_what_the_driver_has_is_refused(
    job: Job, tmp_path: Path, bundle: Path, new_model: Any, write_bundle: Any
) -> None:
    assert check(job) is None
    new_model.doc_string = "another"
    other = write_bundle({"model.onnx": new_model.SerializeToString()})
    cases = {
        f"{other} is another bundle on this worker than on the driver": replace(job, bundle=str(other)),
        "every worker needs the bundle": replace(job, bundle=str(tmp_path / "none")),
        f"this worker has pneumo {__version__}, the driver 0.0.1": replace(job, pneumo="0.0.1"),
        f"does not see the driver's {tmp_path}/elsewhere": replace(job, output=str(tmp_path / "elsewhere")),
        f"does not see the driver's {job.output}": replace(job, description_sha256="0" * 64),
    }
    for words, each in cases.items():
        assert words in str(check(each))
        with pytest.raises((BundleError, UsageError)) as caught:
            do_part(each, 0, part_of(["a"]))
        # Dask sends it to the driver.
        assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    shutil.copytree(bundle, tmp_path / "changed")
    changed = replace(job, bundle=str(tmp_path / "changed"))
    (tmp_path / "changed" / "model.onnx").write_bytes(b"changed")
    assert "model.onnx" in str(check(changed))
    assert "copy the bundle again" in str(check(changed))


def test_the_bundle_is_loaded_once(job: Job) -> None:
    assert work._ready(job) is work._ready(job)


def test_few_films_wait_in_memory(job: Job, tmp_path: Path) -> None:
    film = save(tmp_path / "film.png").read_bytes()
    fetched: list[str] = []

    class Counting(MemoryFileSystem):  # type: ignore[misc]
        """Says how often it was asked."""

        protocol = "counting"

        def cat_file(self, path: str, **options: Any) -> bytes:  # noqa: ARG002
            fetched.append(path)
            return film

    fsspec.register_implementation("counting", Counting, clobber=True)
    ahead = work._read_ahead(job, [f"counting://b/{i}.png" for i in range(100)])
    for taken in range(1, 101):
        assert next(ahead) == film
        assert len(fetched) <= taken + work._AHEAD


def test_a_path_that_no_file_system_knows_is_a_row(job: Job) -> None:
    done = do_part(job, 0, part_of(["nosuch://x/y.png"]))
    assert dict(done.counts.errors) == {"cannot be opened: Protocol not known: nosuch": 1}


@posix
def test_a_name_that_is_no_text_is_judged(job: Job, tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/M\xfcller.png"))
    save(path)
    source = open_source(f"{tmp_path}/M*")
    films = pa.Table.from_batches(source.batches)
    assert do_part(job, 0, films).counts.verdicts == {"PNEUMONIA": 1}
    [row] = pq.read_table(tmp_path / "out" / "films").to_pylist()
    assert row["path"] == f"{tmp_path}/M\\udcfcller.png"
    path.write_bytes(b"damaged")
    again = do_part(job, 1, films)
    assert list(again.counts.errors) == [
        "is not an image that can be read here: use PNG, JPEG, WebP, TIFF, BMP or DICOM"
    ]


# ------------------------------------------------------------------------------------------------------ counts

VALUES = st.fixed_dictionaries(
    {
        "label": st.sampled_from([None, "NORMAL", "PNEUMONIA"]),
        "probability": st.floats(0, 1),
        "logit": st.floats(-1e6, 1e6),
        "novelty": st.floats(0, 1e6),
        "contrast": st.floats(0, 127.5),
        "warnings": st.lists(st.sampled_from(["blank", "tiny (3 x 4 pixels)", "tiny (5 x 6 pixels)"])),
        "milliseconds": st.fixed_dictionaries({"read": st.floats(0, 1e6), "infer": st.floats(0, 1e6)}),
    }
)
ERRORS = st.sampled_from(["p does not exist: check the path", "p is damaged and cannot be read (x (y) 3): copy it"])
RECORDS = st.lists(st.one_of(VALUES, ERRORS.map(lambda error: {"error": error})), max_size=12)


@given(RECORDS, st.integers(0, 12))
def test_counts_of_parts_add_up(records: list[dict[str, Any]], cut: int) -> None:
    def count(some: list[dict[str, Any]]) -> Counts:
        rows = [{"path": "p"} | record for record in some]
        return count_rows(schema.to_table(rows, 0, pa.table({"x": [None] * len(rows)})))

    whole, halves = count(records), count(records[:cut])
    halves += count(records[cut:])
    whole.milliseconds, halves.milliseconds = Counter(), Counter()  # whole milliseconds are rounded
    assert whole == halves
    judged = [record for record in records if "error" not in record]
    assert whole.films == len(records)
    assert whole.verdicts["failed"] == len(records) - len(judged) == whole.errors.total()
    assert whole.probabilities.total() == len(judged) == whole.times.total() // 2
    assert whole.watched.total() == 3 * len(judged)
    assert set(whole.reasons) <= {"blank", "tiny"}
    assert set(whole.errors) <= {"does not exist: check the path", "is damaged and cannot be read: copy it"}


def test_kinds_do_not_fill_the_memory() -> None:
    total = Counts()
    for i in range(1000):
        total += Counts(errors=Counter({f"error {'x' * i}": 2 if i < 5 else 1}))
    assert len(total.errors) <= counts._MAX_KINDS + 1
    assert total.errors.total() == 1005
    assert total.errors[f"error {'x' * 4}"] == 2


@pytest.mark.parametrize("path", ["/data/müller 1964.png", "s3://bucket/a(b)/c.dcm"])
def test_a_kind_of_error_names_no_film(path: str) -> None:
    for error in (
        f"{path} is damaged and cannot be read (broken PNG file (chunk b'x')): copy it again from where it came",
        f'{path} cannot be opened: Could not connect to the endpoint URL: "http://h:1/{path.partition("://")[2]}"',
        f"{path} cannot be opened: [Errno 5] Input/output error: '{path.partition('://')[2] or path}'",
    ):
        kind = kind_of(error, path)
        assert Path(path).name not in kind
        assert not any(digit in kind for digit in "0123456789")


# ------------------------------------------------------------------------------------------------------ the report


def outcome_of(table: pa.Table, **changes: Any) -> Outcome:
    found = Outcome(DESCRIPTION, 0.5, "2018-02-22T10:00:00+00:00", count_rows(table), len(table), 2, judged=len(table))
    return replace(found, seconds=2.0, threads=2, **changes)


def tables() -> list[pa.Table]:
    answer: dict[str, Any] = {
        "label": "NORMAL",
        "probability": 0.3,
        "logit": -0.8,
        "novelty": 1.0,
        "contrast": 40.0,
        "warnings": [],
        "milliseconds": {"read": 3.0, "infer": 4.0},
    }
    failed = {"error": "/secret/a.png is <b>damaged</b> & cannot be read: copy it"}
    withheld = answer | {"label": None, "warnings": ["the picture is almost blank"], "probability": 1.0}
    found = []
    for records in ([answer, failed, withheld, answer], [failed], [answer], [answer | {"label": "PNEUMONIA"}] * 3):
        rows = [{"path": "/secret/a.png"} | record for record in records]
        found.append(schema.to_table(rows, 0, pa.table({"x": [None] * len(rows)})))
    return found


def test_films_unlike_the_reference_are_named_in_summary_and_page(tmp_path: Path) -> None:
    table = pa.concat_tables([tables()[0]] * 20)  # all of logit -0.8 and novelty 1
    even = tuple(i / 100 for i in range(101))
    cases = {"unlike": (even, even, ["score", "novelty"]), "like": ((-0.8,) * 101, (1.0,) * 101, [])}
    for name, (logits, novelties, shifted) in cases.items():
        folder = tmp_path / name
        reference = Reference(400, logits, novelties, None)
        write_report(Store(str(folder)), outcome_of(table, reference=reference, expected=0.25))
        told = json.loads((folder / "summary.json").read_text())["watch"]
        assert told["shifted"] == shifted
        assert list(told["distance"]) == ["score", "novelty"]
        assert (told["withheld"], told["pneumonia"], told["expected"]) == (pytest.approx(1 / 3), 0, 0.25)
        page = (folder / "report.html").read_text(encoding="utf-8")
        assert ("unlike those that the model was tested on" in page) is bool(shifted)


class Tags(HTMLParser):
    """Tags must close in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:  # noqa: ARG002
        if tag not in {"meta", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass


@pytest.mark.parametrize("table", tables(), ids=["all sorts", "failed", "normal", "pneumonia"])
def test_the_report_says_what_the_rows_say_and_names_no_film(tmp_path: Path, table: pa.Table) -> None:
    store = Store(str(tmp_path))
    for _ in range(2):
        write_report(store, outcome_of(table))
    summary = json.loads((tmp_path / "summary.json").read_text())
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sum(summary["verdicts"].values()) == summary["films"] == len(table)
    judged = len(table) - summary["verdicts"]["failed"]
    assert sum(sum(summary["probability"][v]) for v in ("NORMAL", "PNEUMONIA", "withheld")) == judged
    assert [run["films_per_second"] for run in summary["runs"]] == [len(table) / 2] * 2
    assert summary["milliseconds"]["read"]["mean"] == (3.0 if judged else None)
    for text in (page, json.dumps(summary)):
        assert "secret" not in text
        assert "a.png" not in text
        assert "Not a diagnosis" in text
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    drawings = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(drawings) == (3 if judged else 2)
    for drawing in drawings:
        for shape in ET.fromstring(drawing).iter("rect"):  # noqa: S314 - our own
            assert float(shape.get("height", 0)) > 0
            assert 0 <= float(shape.get("x", -1)) <= 960
    assert not re.search(r"https?://", page)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    table = tables()[0]
    outcome = outcome_of(table, missing={7: 500}, unlisted=2)
    write_report(Store(str(tmp_path)), outcome)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "not complete:</strong> 500 films are missing (1 of 2 parts)" in page
    assert "2 folders could not be searched" in page
    assert sentence(outcome) == (
        "4 films: 0 PNEUMONIA, 2 NORMAL, 1 verdict withheld, 1 could not be judged; 2.0 films/s in this run; "
        "500 films are MISSING (1 parts of 2): run the same again"
    )
    assert "films/s" not in sentence(replace(outcome, judged=0))


def test_a_summary_that_somebody_has_spoiled_is_written_anew(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"runs": 3}', '{"runs": [3]}', '{"runs": [{}]}', "\xff"):
        (tmp_path / "summary.json").write_text(text)
        write_report(Store(str(tmp_path)), outcome_of(tables()[0]))
        assert len(json.loads((tmp_path / "summary.json").read_text())["runs"]) == 1


# ------------------------------------------------------------------------------------------------------ phantoms


def test_phantoms_are_judged_as_by_the_default_model(tmp_path: Path) -> None:
    """The way of the rest, once with the model that comes with pneumo."""
    drawn = sorted(draw_phantoms(tmp_path / "phantoms", films=20, seed=3).rglob("*.jpeg"))[:4]
    store = Store(str(tmp_path / "out"))
    write_description(store, DESCRIPTION)
    with Classifier.load(threads=1) as classifier:
        seen = hashlib.sha256(store.read(plan.DESCRIPTION) or b"").hexdigest()
        sha256 = bundle_sha256(classifier.bundle.folder)
        job = Job(store.url, seen, __version__, None, classifier.file, sha256, "local", "")
        expected = [classifier.predict(film) for film in drawn]
    do_part(job, 0, part_of([str(film) for film in drawn]))
    rows = pq.read_table(tmp_path / "out" / "films").to_pylist()
    assert [(row["probability"], row["label"]) for row in rows] == [(each.probability, each.label) for each in expected]


# --------------------------------------------------------------------------------------------------------- the page


def test_the_page_has_the_columns_of_the_schema() -> None:
    assert f"Schema version {schema.VERSION}," in PAGE
    rows = re.findall(r"^\| `(\w+)` \| ([\w<>]+) \| .+ \|$", PAGE, re.MULTILINE)
    kinds = {"list<string>": pa.list_(pa.string())}
    assert [(name, kinds.get(kind) or pa.type_for_alias(kind)) for name, kind in rows] == [
        *schema.VERDICT, *schema.REGION, *schema.TIMES,
    ]  # fmt: skip
