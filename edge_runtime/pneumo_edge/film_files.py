"""Which files are films, and which films a folder or a pattern holds. All commands ask here.

The name decides where it can. Where it cannot, the first bytes do: DICOM files often have no suffix.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".dcm", ".dicom"})
"""Suffixes of films in a folder, in small letters. A file that is named is tried whatever it is called."""

INDEX = "dicomdir"
"""What DICOM calls the table of contents of a medium, in small letters: a DICOM file, but no film."""

_LEFT_BEHIND = (".", "__MACOSX")


def is_left_behind(name: str) -> bool:
    """Tells from its name whether a file or folder is one that nobody put there on purpose, such as `.DS_Store`."""
    return name.startswith(_LEFT_BEHIND)


def is_film_by_name(path: str) -> bool | None:
    """Tells from its name whether a file in a folder is a film; None where only its first bytes can tell.

    Those are files without a suffix, and files whose suffix is a number, such as the UID "1.2.840.10008.5".
    """
    name = os.path.basename(path).lower()  # noqa: PTH119 - a URL is no Path
    suffix = os.path.splitext(name)[1]  # noqa: PTH122
    if name == INDEX or (suffix and not suffix[1:].isdigit()):
        return suffix in SUFFIXES
    return None


def is_film_file(path: str | Path) -> bool:
    """Tells whether a file in a folder is a film: from its name or, where that cannot tell, from its first bytes.

    A link to a file that is missing counts as a film if it has the suffix of one: the user is told what is wrong.
    """
    by_name = is_film_by_name(os.fspath(path))
    # A pipe or device may have the name of a picture too, and reading it would never end.
    if not os.path.isfile(path):  # noqa: PTH113 - a name of any bytes
        return by_name is True and not os.path.exists(path)  # noqa: PTH110
    if by_name is not None:
        return by_name
    from pneumo_edge.preprocess import is_film

    try:
        with open(path, "rb") as file:  # noqa: PTH123
            return is_film(file.read(512))
    except OSError:
        return False


def _raise(error: OSError) -> None:
    raise error


def films_in(
    folder: str, *, recursive: bool = True, leave_out: str = "", skip: Callable[[OSError], None] = _raise
) -> Iterator[str]:
    """Yields the films in a folder; takes what `files_in` takes."""
    return filter(is_film_file, files_in(folder, recursive=recursive, leave_out=leave_out, skip=skip))


def files_in(
    folder: str, *, recursive: bool = True, leave_out: str = "", skip: Callable[[OSError], None] = _raise
) -> Iterator[str]:
    """Yields the files in a folder, sorted by name in each folder, but those that nobody put there on purpose.

    Links to folders are not followed.

    Args:
        folder: The folder to search.
        recursive: Search it to any depth.
        leave_out: A folder that is not searched, wherever it lies; "" for none.
        skip: Called with the error where a folder cannot be searched; the search then goes on. Raises it by default.
    """
    unwanted = leave_out and os.path.realpath(leave_out)
    for parent, folders, files in os.walk(folder, onerror=skip):
        folders[:] = sorted(name for name in folders if not is_left_behind(name)) if recursive else []
        if unwanted:
            folders[:] = [f for f in folders if os.path.realpath(os.path.join(parent, f)) != unwanted]  # noqa: PTH118
        yield from (os.path.join(parent, file) for file in sorted(files) if not is_left_behind(file))  # noqa: PTH118


def files_like(pattern: str) -> list[str]:
    """Returns the files that a glob pattern fits, sorted; `**` stands for any number of folders.

    Hidden files are left out, as a shell does.
    """
    *parts, last = (part if part == "**" else re.sub(r"\*\*+", "*", part) for part in Path(pattern).parts)
    # A pattern that ends with ** means the files at any depth. The folders among them would bring films a second time.
    parts += ["**", "*"] if last == "**" else [last]
    if "**" not in parts:
        return sorted(glob.glob(pattern))  # noqa: PTH207 - leaves hidden files alone, as a shell does
    fixed = next(i for i, part in enumerate(parts) if glob.has_magic(part))
    folder = Path(*parts[:fixed])
    # `glob.glob` would follow links to folders, which may lead in circles.
    matches = folder.glob(str(Path(*parts[fixed:])))
    return sorted(
        str(match)
        for match in matches
        if not match.is_dir() and not any(is_left_behind(part) for part in match.relative_to(folder).parts)
    )
