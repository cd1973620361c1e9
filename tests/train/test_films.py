"""The prepared arrays: films decoded once, kept, and made again when something changes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pictures import draw
from places import SHARED
from pneumo_edge.preprocess import VERSION, read_film
from pneumo_train import films as films_module
from pneumo_train.films import FilmFile, index_hash, prepare
from pneumo_train.sources import gather
from pneumo_train.surroundings import cache_folder

REAL = SHARED / "data" / "chest_xray"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "pneumo"


def index(data: Path) -> tuple[tuple[Path, ...], tuple[FilmFile, ...]]:
    """The folder of a data set and its films."""
    gathered = gather([str(data)])
    return gathered.roots, gathered.films


# ------------------------------------------------------------------------------------------- the prepared arrays


def test_what_is_noticed_of_a_film_is_kept_with_it(data: Path) -> None:
    pytest.importorskip("pydicom", reason="needs the extra dicom")
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID, DigitalXRayImageStorageForProcessing, ExplicitVRLittleEndian

    raw = Dataset()
    raw.file_meta = FileMetaDataset()
    raw.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    raw.SOPClassUID = raw.file_meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForProcessing
    raw.SOPInstanceUID = raw.file_meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    raw.Modality, raw.BodyPartExamined, raw.PresentationIntentType = "DX", "CHEST", "FOR PROCESSING"
    raw.SamplesPerPixel, raw.PhotometricInterpretation, raw.PixelRepresentation = 1, "MONOCHROME2", 0
    raw.Rows = raw.Columns = 128
    raw.BitsAllocated, raw.BitsStored, raw.HighBit = 16, 12, 11
    raw.PixelData = np.random.default_rng(0).integers(0, 4096, (128, 128)).astype("<u2").tobytes()
    raw.save_as(data / "train/NORMAL/b.dcm", enforce_file_format=True)
    Image.new("L", (200, 200), 90).save(data / "train/NORMAL/a.png")
    draw(data / "train/NORMAL/c.png", size=(200, 200))
    roots, films = index(data)
    for _ in range(2):  # the second time from the cache
        prepared = prepare(roots, films, 32)
        said = {films[i].path: sentences for i, sentences in prepared.remarks.items()}
        assert said["train/NORMAL/a.png"] == ("the picture is almost blank",)
        assert "train/NORMAL/c.png" not in said
        assert "FOR PROCESSING" in said["train/NORMAL/b.dcm"][0]


def test_prepared_arrays_are_those_of_the_device_bit_for_bit(data: Path) -> None:
    draw(data / "train/NORMAL/a.png", 20, "I;16", (70, 90))
    draw(data / "train/NORMAL/b.png", 21, "RGB", (33, 200))
    draw(data / "train/NORMAL/c.jpeg", 22, "RGB", (900, 700))  # large enough to be scaled while it is decoded
    draw(data / "train/NORMAL/d.tif", 23, "L", (64, 64))
    for size in (32, 64):
        roots, films = index(data)
        prepared = prepare(roots, films, size)
        assert prepared.pixels.shape == (len(films), size, size)
        assert prepared.pixels.dtype == np.uint8
        assert not prepared.errors
        for film, pixels in zip(films, prepared.pixels, strict=True):
            assert np.array_equal(pixels, read_film(roots[0] / film.path, size).pixels[:, :, 0]), film.path


def test_a_prepared_array_cannot_be_written(data: Path) -> None:
    roots, films = index(data)
    with pytest.raises(ValueError, match="read-only"):
        prepare(roots, films, 32).pixels[0] = 0


def test_an_unreadable_film_is_named_and_skipped(data: Path) -> None:
    whole = (data / "train/NORMAL/IM-0115-0001.jpeg").read_bytes()
    bad = {"a.png": b"this is text", "b.jpeg": b"", "c.jpeg": whole[: len(whole) // 2]}
    for name, content in bad.items():
        (data / "train/NORMAL" / name).write_bytes(content)
    roots, films = index(data)
    for prepared in (prepare(roots, films, 32), prepare(roots, films, 32)):  # decoded, and from the cache
        assert [Path(films[i].path).name for i in sorted(prepared.errors)] == list(bad)
        for i, message in prepared.errors.items():
            assert message.startswith(str(roots[0] / films[i].path))
            assert "\n" not in message
            assert not prepared.pixels[i].any()
        assert [i for i, content in enumerate(prepared.sha256) if not content] == sorted(prepared.errors)


def test_the_cache_is_reused_while_the_files_are_the_same(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, films = index(data)
    first = prepare(roots, films, 32)
    state = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*")}
    assert sorted(p.name for p in state if p.is_file()) == ["films.json", "pixels.npy"]

    def read(*_: object) -> None:
        raise RuntimeError("read again")

    monkeypatch.setattr(films_module, "read_film", read)
    second = prepare(roots, films, 32)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in cache.rglob("*")} == state
    assert np.array_equal(second.pixels, first.pixels)
    assert second.sha256 == first.sha256


def test_the_cache_is_made_again_when_a_film_changes(data: Path) -> None:
    roots, films = index(data)
    before = prepare(roots, films, 32)
    path = roots[0] / films[2].path
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[-40] ^= 0xFF  # as many bytes as before
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
    after = prepare(roots, films, 32)
    assert [a == b for a, b in zip(after.sha256, before.sha256, strict=True)] == [i != 2 for i in range(7)]
    assert not np.array_equal(after.pixels[2], before.pixels[2])
    assert np.array_equal(np.delete(after.pixels, 2, 0), np.delete(before.pixels, 2, 0))


def test_a_film_that_comes_or_goes_makes_the_cache_again_and_the_old_list_still_has_its_own(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, films = index(data)
    before = prepare(roots, films, 32)
    added = draw(data / "train/NORMAL/IM-0116-0001.jpeg", 30)
    more = prepare(roots, index(data)[1], 32)
    assert len(more.pixels) == 8
    assert np.array_equal(np.delete(more.pixels, 1, 0), before.pixels)
    assert np.array_equal(more.pixels[1], read_film(added, 32).pixels[:, :, 0])
    added.unlink()

    def read(*_: object) -> None:
        raise RuntimeError("read again")

    monkeypatch.setattr(films_module, "read_film", read)
    assert np.array_equal(prepare(roots, index(data)[1], 32).pixels, before.pixels)
    (roots[0] / films[0].path).unlink()
    with pytest.raises(RuntimeError, match="read again"):
        prepare(roots, index(data)[1], 32)


def test_a_film_that_was_touched_is_read_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots, films = index(data)
    before = prepare(roots, films, 32)
    path = roots[0] / films[3].path
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    calls: list[object] = []

    def read(*arguments: object) -> object:
        calls.append(arguments)
        return read_film(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(films_module, "read_film", read)
    after = prepare(roots, films, 32)
    assert len(calls) == len(films)
    assert after.sha256 == before.sha256
    assert np.array_equal(after.pixels, before.pixels)


def test_films_are_decoded_in_parallel_and_progress_counts_each(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots, films = index(data)
    together = threading.Barrier(3, timeout=600)
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
    prepare(roots, films[:3], 32)
    assert len(done) == 3


def test_the_cache_is_made_again_for_another_list_size_or_preprocessing(
    data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roots, films = index(data)
    prepare(roots, films, 32)
    prepare(roots, films[1:], 32)
    prepare(roots, films, 64)
    monkeypatch.setattr(films_module, "VERSION", VERSION + 1)
    prepare(roots, films, 32)
    assert len(list(cache.iterdir())) == 4


def test_an_interrupted_cache_leaves_nothing(data: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    roots, films = index(data)
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
            prepare(roots, films, 32)
    assert list(cache.iterdir()) == []
    assert len(calls) < len(films) // 2  # Ctrl-C does not wait for the films that have not begun
    assert prepare(roots, films, 32).pixels[-1].any()


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


# ------------------------------------------------------------------------------------------------ the real set


def test_the_real_films_are_those_that_the_device_sees() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real films in {REAL}")
    roots, films = index(REAL)
    some = [f for f in films if f.folder == "train"][::105]
    assert len(some) == 50
    prepared = prepare(roots, some, 96)
    assert not prepared.errors
    for film, pixels in zip(some, prepared.pixels, strict=True):
        assert np.array_equal(pixels, read_film(roots[0] / film.path, 96).pixels[:, :, 0]), film.path
