"""Reads a DICOM file as the grey film that a radiologist would see, and notes what the model does not cover.

A file goes through these modules in order: `tags` reads the elements, `remarks` refuses what is no film, `decode`
unpacks the pixels, `grey` turns them into grey levels. docs/reading.md tells what is read, and by which rule.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from pneumo_edge.dicom.tags import TAGS, read_tags, text
from pneumo_edge.errors import ImageError, PneumoError, one_line
from pneumo_edge.levels import DeepFilm

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from pneumo_edge.dicom.decode import Values

_T = TypeVar("_T")

_RAW = "the file holds raw detector values (FOR PROCESSING)"


@dataclass(frozen=True)
class DicomFilm:
    """A film from a DICOM file."""

    grey: npt.NDArray[np.uint8]
    """(H, W), 0 = black as an X-ray is viewed (air dark, bone light)."""
    warnings: tuple[str, ...]
    """What the model does not cover by the tags, and which tags were ignored; without names, numbers and dates."""
    doubts: tuple[str, ...] = ()
    """Reasons for which the verdict is withheld, one English sentence each."""
    age_years: float | None = None
    """Age of the patient when the film was taken; None if it is not stated."""
    view: str = ""
    """The name that `pneumo_edge.unseen.view_named` gives the view; "" if it is not stated."""


def read_dicom(data: bytes, name: str) -> DicomFilm:
    """Reads a projection X-ray from the bytes of a DICOM file.

    May be called from several threads. pydicom remarks on each oddity of a file through `warnings`; those are silenced
    by a filter that names pydicom's modules alone and stays in the process. `warnings.catch_warnings` would swap the
    filters of all threads and, where two threads overlap, put the wrong ones back. The logger "pydicom" is left as it
    is: it writes nowhere unless the application asks for it.

    Args:
        data: The whole file, with or without preamble and file meta information.
        name: Name of the file in errors.

    Raises:
        ImageError: No single grey projection X-ray, larger than `MAX_PIXELS`, damaged, of a kind that is not read here,
            or the packages that read it cannot be used here.
        MissingExtraError: pydicom is not installed.
    """
    return _read(data, name, _as_the_model_sees_it)


def read_deep_dicom(data: bytes, name: str) -> DeepFilm:
    """Reads the same film at its own depth.

    Raises:
        ImageError, MissingExtraError: As `read_dicom` does.
    """
    from pneumo_edge.dicom.grey import deep_levels

    return _read(data, name, deep_levels)


def _as_the_model_sees_it(pixels: Values, bits: int, ds: Dataset) -> DicomFilm:
    from pneumo_edge.dicom.grey import grey_levels
    from pneumo_edge.dicom.remarks import age_in_years, for_processing, remarks_on
    from pneumo_edge.unseen import view_named

    remarks = list(remarks_on(ds))
    grey, told = grey_levels(pixels, bits, ds, remarks)
    doubts: tuple[str, ...] = ()
    if for_processing(ds) and told:
        remarks.append(f"{_RAW}; the model has seen films made for viewing only")
    elif for_processing(ds):
        doubts = (f"{_RAW} and neither window nor look-up table that tells how to show them",)
    return DicomFilm(grey, tuple(remarks), doubts, age_in_years(ds), view_named(text(ds, "ViewPosition")))


def _read(data: bytes, name: str, make: Callable[[Values, int, Dataset], _T]) -> _T:
    from pneumo_edge.dicom.decode import stored_values
    from pneumo_edge.dicom.remarks import refuse

    try:
        ds = read_tags(data, TAGS, name)
        refuse(ds, name)
        return make(*stored_values(ds, name), ds)
    except PneumoError:
        raise
    except MemoryError:
        raise ImageError(f"{name} needs more memory than there is here: scale it down") from None
    except ImportError as error:
        raise ImageError(
            f"{name} cannot be read, a module cannot be imported here ({one_line(error)}): install pneumo[dicom] again"
        ) from error
    except Exception as error:
        # Hostile bytes make pydicom and the decoders raise nearly anything. Their messages may quote the file, and
        # with it the patient, so they stay in the chain that only PNEUMO_DEBUG shows.
        raise ImageError(
            f"{name} is a damaged DICOM file, its tags and its pixels do not fit: copy it again from where it came"
        ) from error
