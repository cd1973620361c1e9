"""The bundles that are measured, and the films on which they are measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pneumo_edge.bundle import DEFAULT_BUNDLE, Bundle, read_bundle
from pneumo_edge.errors import DataError
from pneumo_edge.film_files import films_in

PHANTOMS = "phantoms (synthetic drawings, no patients)"


def open_bundles(folders: Sequence[Path]) -> dict[str, Bundle]:
    """Returns name -> bundle, in the order given; without folders, the bundle that comes with pneumo.

    The name is that of the model, or the folder where two models have the same name.
    """
    bundles = [read_bundle(folder) for folder in folders or (DEFAULT_BUNDLE,)]
    taken = Counter(bundle.description.name for bundle in bundles)
    return {b.description.name if taken[b.description.name] == 1 else str(b.folder): b for b in bundles}


def films_below(folder: Path) -> list[Path]:
    """Returns the films in a folder, at any depth, sorted by path."""
    return sorted(map(Path, films_in(str(folder))))


@contextmanager
def sample_films(folder: Path | None, count: int) -> Iterator[tuple[list[Path], str]]:
    """Yields at most `count` films, spread over a folder, and a name for them; phantoms where no folder is given.

    Raises:
        DataError: The folder holds no film.
    """
    if folder is not None:
        found = films_below(folder)
        if not found:
            raise DataError(f"{folder} holds no films: give a folder with X-ray images to --films")
        step = max(1, len(found) // count)
        yield found[::step][:count], folder.resolve().name
        return
    from pneumo_train.phantom import draw_phantoms

    with TemporaryDirectory(prefix="pneumo-bench-") as scratch:
        drawn = draw_phantoms(Path(scratch) / "phantoms", films=max(count, 20))
        yield sorted(drawn.rglob("*.jpeg"))[:count], PHANTOMS
