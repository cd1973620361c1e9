"""The index of a data set, whose film each is, and the prepared arrays."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pneumo_edge.errors import DataError
from pneumo_edge.preprocess import VERSION, read_film
from pneumo_train import films as films_module
from pneumo_train import train as train_module
from pneumo_train.films import FilmFile, find_root, index_films, index_hash, labels_of, prepare
from pneumo_train.surroundings import cache_folder

REAL = Path(__file__).parents[1].parent / "shared" / "data" / "chest_xray"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pneumo"


def draw(path: Path, seed: int = 0, mode: str = "L", size: tuple[int, int] = (50, 40)) -> Path:
    """Writes a picture of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    if mode == "I;16":
        Image.fromarray(rng.integers(300, 4000, (size[1], size[0])).astype(np.uint16)).save(path)
    else:
        shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
        Image.fromarray(rng.integers(0, 256, shape).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two patients of each class in train, one in test."""
    root = tmp_path / "data"
    names = (
        "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/IM-0117-0001.jpeg",
        "train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "train/PNEUMONIA/person2_virus_3.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg",
    )  # fmt: skip
    for seed, name in enumerate(names):
        draw(root / name, seed)
    return root


# ---------------------------------------------------------------------------------------------------- the index


@pytest.mark.parametrize("nesting", ["", "chest_xray", "chest_xray/chest_xray"])
def test_finds_the_films_however_the_download_is_nested(data: Path, tmp_path: Path, nesting: str) -> None:
    given = tmp_path / "download"
    (given / nesting).parent.mkdir(parents=True, exist_ok=True)
    data.rename(given / nesting)
    root, films = index_films(given)
    assert root == given / nesting
    assert len(films) == 7


def test_passes_over_what_archives_leave_behind(data: Path) -> None:
    before = index_films(data)[1]
    draw(data / "__MACOSX" / "train" / "NORMAL" / "IM-0115-0001.jpeg")
    draw(data / "train" / "NORMAL" / "__MACOSX" / "IM-0115-0001.jpeg")
    draw(data / "train" / "NORMAL" / ".hidden" / "IM-0115-0001.jpeg")
    (data / "train" / "NORMAL" / "._IM-0115-0001.jpeg").write_bytes(b"\0\5\26\7")
    (data / "train" / ".DS_Store").write_bytes(b"\0")
    (data / "train" / "NORMAL" / ".DS_Store").write_bytes(b"\0")
    (data / "train" / "NORMAL" / "Thumbs.db").write_bytes(b"\0")
    (data / "train" / "NORMAL" / "a folder.jpeg").mkdir()
    draw(data / "train" / "OTHER" / "IM-0115-0001.jpeg")
    assert index_films(data)[1] == before


def test_a_film_carries_label_patient_and_folder(data: Path) -> None:
    draw(data / "val" / "PNEUMONIA" / "deeper" / "person9_bacteria_4.PNG")
    assert index_films(data)[1] == [
        FilmFile("train/NORMAL/IM-0115-0001.jpeg", 0, "IM-0115", "train"),
        FilmFile("train/NORMAL/IM-0117-0001.jpeg", 0, "IM-0117", "train"),
        FilmFile("train/PNEUMONIA/person1_bacteria_1.jpeg", 1, "person1", "train"),
        FilmFile("train/PNEUMONIA/person1_bacteria_2.jpeg", 1, "person1", "train"),
        FilmFile("train/PNEUMONIA/person2_virus_3.jpeg", 1, "person2", "train"),
        FilmFile("val/PNEUMONIA/deeper/person9_bacteria_4.PNG", 1, "person9", "val"),
        FilmFile("test/NORMAL/IM-0001-0001.jpeg", 0, "IM-0001", "test"),
        FilmFile("test/PNEUMONIA/person1_virus_6.jpeg", 1, "person1", "test"),
    ]
    assert labels_of(index_films(data)[1]).tolist() == [0, 0, 1, 1, 1, 1, 0, 1]


def test_a_folder_that_is_missing_or_no_folder_is_named(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nowhere", draw(tmp_path / "film.png")):
        with pytest.raises(DataError, match="is no folder") as error:
            find_root(wrong)
        assert str(wrong) in str(error.value)


def test_a_folder_without_train_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty" / "test" / "NORMAL").mkdir(parents=True)
    with pytest.raises(DataError, match="holds no train/ folder"):
        index_films(tmp_path / "empty")


@pytest.mark.parametrize("missing", ["NORMAL", "PNEUMONIA"])
def test_one_class_alone_is_refused_by_name(data: Path, missing: str) -> None:
    for film in (data / "train" / missing).iterdir():
        film.unlink()
    with pytest.raises(DataError, match=rf"train/{missing} holds no films: .*NORMAL and PNEUMONIA"):
        index_films(data)
    shutil.rmtree(data / "train" / missing)
    with pytest.raises(DataError, match=rf"train/{missing} holds no films"):
        index_films(data)


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems refuse such names themselves")
@pytest.mark.parametrize("name", [b"IM-1\xff.jpeg", b"IM-1\n.jpeg"])
def test_a_name_that_no_csv_file_can_hold_is_refused(data: Path, name: bytes) -> None:
    shutil.copy(data / "train/NORMAL/IM-0115-0001.jpeg", data / "train/NORMAL" / os.fsdecode(name))
    with pytest.raises(DataError, match="rename it") as error:
        index_films(data)
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
        ("person_12.jpeg", "person_12"),
        ("scan 7.jpeg", "scan 7"),
    ],
)
def test_the_patient_stands_in_the_names_of_the_kaggle_set(data: Path, name: str, patient: str) -> None:
    draw(data / "train" / "NORMAL" / name)
    assert {f.path: f.patient for f in index_films(data)[1]}[f"train/NORMAL/{name}"] == patient


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
    assert {f.path: f.patient for f in index_films(data, rule)[1]}["train/NORMAL/0042-view3.png"] == patient


def test_a_broken_rule_is_a_sentence(data: Path) -> None:
    with pytest.raises(DataError, match=r"the patient rule '\(person' is no regular expression"):
        index_films(data, "(person")


# ------------------------------------------------------------------------------------------- the prepared arrays


def test_prepared_arrays_are_those_of_the_device_bit_for_bit(data: Path) -> None:
    draw(data / "train/NORMAL/a.png", 20, "I;16", (70, 90))
    draw(data / "train/NORMAL/b.png", 21, "RGB", (33, 200))
    draw(data / "train/NORMAL/c.jpeg", 22, "RGB", (900, 700))  # large enough to be scaled while it is decoded
    draw(data / "train/NORMAL/d.tif", 23, "L", (64, 64))
    for size in (32, 64):
        root, films = index_films(data)
        prepared = prepare(root, films, size)
        assert prepared.pixels.shape == (len(films), size, size)
        assert prepared.pixels.dtype == np.uint8
        assert not prepared.errors
        for film, pixels in zip(films, prepared.pixels, strict=True):
            assert np.array_equal(pixels, read_film(root / film.path, size).pixels[:, :, 0]), film.path


def test_a_prepared_array_cannot_be_written(data: Path) -> None:
    root, films = index_films(data)
    with pytest.raises(ValueError, match="read-only"):
        prepare(root, films, 32).pixels[0] = 0


def test_an_unreadable_film_is_named_and_skipped(data: Path) -> None:
    whole = (data / "train/NORMAL/IM-0115-0001.jpeg").read_bytes()
    bad = {"a.png": b"this is text", "b.jpeg": b"", "c.jpeg": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (data / "train/NORMAL" / name).write_bytes(content)
    root, films = index_films(data)
    for prepared in (prepare(root, films, 32), prepare(root, films, 32)):  # decoded, and from the cache
        assert [Path(films[i].path).name for i in sorted(prepared.errors)] == list(bad)
        for i, message in prepared.errors.items():
            assert message.startswith(str(root / films[i].path))
            assert "\n" not in message
            assert not prepared.pixels[i].any()
        assert [i for i, content in enumerate(prepared.sha256) if not content] == sorted(prepared.errors)


def test_the_cache_is_reused_while_the_files_are_the_same(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, films = index_films(data)
    first = prepare(root, films, 32)
    state = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*")}
    assert sorted(p.name for p in state if p.is_file()) == ["films.json", "pixels.npy"]

    def read(*_: object) -> None:
        raise RuntimeError("read again")

    monkeypatch.setattr(films_module, "read_film", read)
    second = prepare(root, films, 32)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*")} == state
    assert np.array_equal(second.pixels, first.pixels)
    assert second.sha256 == first.sha256


def test_the_cache_is_made_again_when_a_film_changes(data: Path) -> None:
    root, films = index_films(data)
    before = prepare(root, films, 32)
    path = root / films[2].path
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-40] ^= 0xFF  # as many bytes as before
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    after = prepare(root, films, 32)
    assert [a == b for a, b in zip(after.sha256, before.sha256, strict=True)] == [i != 2 for i in range(7)]
    assert not np.array_equal(after.pixels[2], before.pixels[2])
    assert np.array_equal(np.delete(after.pixels, 2, 0), np.delete(before.pixels, 2, 0))


def test_a_film_that_comes_or_goes_makes_the_cache_again_and_the_old_list_still_has_its_own(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, films = index_films(data)
    before = prepare(root, films, 32)
    added = draw(data / "train/NORMAL/IM-0116-0001.jpeg", 30)
    more = prepare(root, index_films(data)[1], 32)
    assert len(more.pixels) == 8
    assert np.array_equal(np.delete(more.pixels, 1, 0), before.pixels)
    assert np.array_equal(more.pixels[1], read_film(added, 32).pixels[:, :, 0])
    added.unlink()

    def read(*_: object) -> None:
        raise RuntimeError("read again")

    monkeypatch.setattr(films_module, "read_film", read)
    assert np.array_equal(prepare(root, index_films(data)[1], 32).pixels, before.pixels)
    (root / films[0].path).unlink()
    with pytest.raises(RuntimeError, match="read again"):
        prepare(root, index_films(data)[1], 32)


def test_a_film_that_was_touched_is_read_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, films = index_films(data)
    before = prepare(root, films, 32)
    path = root / films[3].path
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    calls: list[object] = []

    def read(*arguments: object) -> object:
        calls.append(arguments)
        return read_film(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(films_module, "read_film", read)
    after = prepare(root, films, 32)
    assert len(calls) == len(films)
    assert after.sha256 == before.sha256
    assert np.array_equal(after.pixels, before.pixels)


def test_films_are_decoded_in_parallel_and_progress_counts_each(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, films = index_films(data)
    together = threading.Barrier(3, timeout=20)
    done: list[int] = []

    def read(*arguments: object) -> object:
        if len(done) == 0:
            together.wait()  # three at once, or nobody goes on
        return read_film(*arguments)  # type: ignore[arg-type]

    def tracked(items: Iterable[None], what: str, total: int) -> Iterator[None]:
        assert (what, total) == ("preparing films at 32 x 32", 3)
        for item in items:
            done.append(1)
            yield item

    monkeypatch.setattr(films_module, "usable_cores", lambda: 3)
    monkeypatch.setattr(films_module, "read_film", read)
    monkeypatch.setattr(films_module, "tracked", tracked)
    prepare(root, films[:3], 32)
    assert len(done) == 3


def test_the_cache_is_made_again_for_another_list_size_or_preprocessing(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, films = index_films(data)
    prepare(root, films, 32)
    prepare(root, films[1:], 32)
    prepare(root, films, 64)
    monkeypatch.setattr(films_module, "VERSION", VERSION + 1)
    prepare(root, films, 32)
    assert len(list(cache.iterdir())) == 4


def test_an_interrupted_cache_leaves_nothing(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, films = index_films(data)
    films = films * 60
    calls = []

    def read(*arguments: object) -> object:
        calls.append(arguments)
        time.sleep(0.001)
        if len(calls) > 5:
            raise KeyboardInterrupt
        return read_film(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(films_module, "read_film", read)
        with pytest.raises(KeyboardInterrupt):
            prepare(root, films, 32)
    assert list(cache.iterdir()) == []
    assert len(calls) < len(films) // 2  # Ctrl-C does not wait for the films that have not begun
    assert prepare(root, films, 32).pixels[-1].any()


def test_the_cache_lies_where_the_desktop_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache" / "pneumo"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "pneumo"


def test_the_hash_of_an_index_sees_path_label_and_content() -> None:
    def hashed(path: str = "train/NORMAL/a.png", label: int = 0, content: str = "00") -> str:
        return index_hash([FilmFile(path, label, "p", "train")], [content])

    assert hashed() == hashed()
    assert len({hashed(), hashed("train/NORMAL/b.png"), hashed(label=1), hashed(content="01")}) == 4


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
    folder, name = train_module._locate("kaggle", tmp_path)
    root, films = index_films(folder)
    assert asked == ["paultimothymooney/chest-xray-pneumonia"]
    assert (root, len(films)) == (tmp_path / "hub" / "chest_xray", 7)
    assert name.startswith("chest-xray-pneumonia")


@pytest.mark.parametrize("error", [RuntimeError("no such data set\nand more\nwords"), ConnectionError("pool(host=x)")])
def test_a_download_that_fails_is_one_sentence(tmp_path: Path, hub: SimpleNamespace, error: Exception) -> None:
    def dataset_download(handle: str) -> str:
        raise error

    hub.dataset_download = dataset_download
    with pytest.raises(DataError, match=r"could not be downloaded.*check the network, or download it by") as raised:
        train_module._locate("kaggle", tmp_path)
    assert "\n" not in str(raised.value)
    assert "more words" not in str(raised.value)


def test_where_kaggle_does_not_answer_nobody_waits_for_ever(tmp_path: Path, hub: SimpleNamespace) -> None:
    def silence(_: str, timeout: float) -> None:
        assert timeout <= 30
        raise TimeoutError

    hub.requests.head = silence  # and there is no dataset_download: nobody must ask without a time limit
    with pytest.raises(DataError, match="Kaggle does not answer: check the network, or download it by hand"):
        train_module._locate("kaggle", tmp_path)


# ------------------------------------------------------------------------------------------------ the real set


def test_the_real_films_are_those_that_the_device_sees() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real films in {REAL}")
    root, films = index_films(REAL)
    some = [f for f in films if f.folder == "train"][::105]
    assert len(some) == 50
    prepared = prepare(root, some, 96)
    assert not prepared.errors
    for film, pixels in zip(some, prepared.pixels, strict=True):
        assert np.array_equal(pixels, read_film(root / film.path, 96).pixels[:, :, 0]), film.path
