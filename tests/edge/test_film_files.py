"""Which files are films: one answer for all commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pneumo_edge.film_files import films_in, is_film_by_name, is_film_file, is_left_behind


@given(st.text(max_size=20))
def test_a_name_tells_by_its_suffix(stem: str) -> None:
    assert is_film_by_name(f"a/{stem}x.PNG") is True
    assert is_film_by_name(f"{stem}x.txt") is False
    assert is_film_by_name("s3://bucket/IM0001") is None
    assert is_film_by_name("1.2.840.10008.5") is None


def test_a_table_of_contents_is_no_film(tmp_path: Path) -> None:
    index = tmp_path / "DICOMDIR"
    index.write_bytes(bytes(128) + b"DICM" + bytes(100))
    assert is_film_by_name("a/dicomdir") is False
    assert not is_film_file(index)
    index.rename(tmp_path / "IM0001")
    assert is_film_file(tmp_path / "IM0001")


def test_what_nobody_put_there_is_left_behind() -> None:
    assert [name for name in (".DS_Store", "._a.png", "__MACOSX", "a.png", "MACOSX") if not is_left_behind(name)] == [
        "a.png",
        "MACOSX",
    ]


def test_films_in_a_folder(tmp_path: Path) -> None:
    for name in ("b.png", "a.png", "sub/c.png", "sub/.d.png", "overlays/a.png", "__MACOSX/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()

    def found(**options: Any) -> list[str]:
        return [Path(film).relative_to(tmp_path).as_posix() for film in films_in(str(tmp_path), **options)]

    assert found(recursive=False) == ["a.png", "b.png"]
    assert found() == ["a.png", "b.png", "overlays/a.png", "sub/c.png"]
    assert found(leave_out=str(tmp_path / "overlays")) == ["a.png", "b.png", "sub/c.png"]


def test_a_folder_that_cannot_be_searched_is_not_passed_over_in_silence(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(films_in(str(tmp_path / "missing")))
    said: list[OSError] = []
    assert list(films_in(str(tmp_path / "missing"), skip=said.append)) == []
    assert len(said) == 1
