"""From stored values to grey levels, by DICOM PS3.3 C.11 and C.7.6.3.1.

Stored value -> modality LUT or rescale -> VOI LUT or window -> inversion. Each step is a function of the stored value
alone, so the whole chain is worked out once for every value there can be (at most 65,536) and then looked up pixel by
pixel.

An element of the chain that cannot be used is left out, with a remark: the film can still be judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pneumo_edge.dicom.decode import Values
from pneumo_edge.dicom.tags import items, numbers, text, texts, words
from pneumo_edge.levels import DeepFilm, film_range, look_up

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MAX_ENTRIES = 1 << 16

_MOST = 1e6
"""Most widths of the window between the darkest and the lightest value of a film. With more, the film is black and
white."""

Doubles = npt.NDArray[np.float64]


def grey_levels(pixels: Values, bits: int, ds: Dataset, remarks: list[str]) -> tuple[npt.NDArray[np.uint8], bool]:
    """Turns stored values (H, W) into grey levels 0 to 255, 0 = black, as the tags of `ds` ask for.

    Where neither a window nor a VOI LUT says which values matter, those of the film do: all of them with up to 8 bits,
    `levels.film_range` with more.

    Args:
        pixels: Stored values, unused bits cleared or filled with the sign.
        bits: Number of their bits.
        ds: The tags.
        remarks: Receives a sentence for each element that was left out.

    Returns:
        The grey levels, and whether the file says which values matter.
    """
    lowest, light, told = _light(pixels, bits, ds, remarks)
    return look_up(np.rint(255.0 * light.clip(0.0, 1.0)).astype(np.uint8), pixels, lowest), told


def deep_levels(pixels: Values, bits: int, ds: Dataset) -> DeepFilm:
    """Turns stored values into as many grey levels as there are, and keeps the window apart; see `grey_levels`."""
    lowest, light, _told = _light(pixels, bits, ds, [])
    darkest, lightest = float(light.min()), float(light.max())
    if not lightest - darkest < _MOST:
        light = light.clip(0.0, 1.0)
        darkest, lightest = 0.0, 1.0
    levels = max(len(light) - 1, 1)
    scale = levels / (lightest - darkest or 1.0)
    kind = np.uint8 if levels < 256 else np.uint16
    values = look_up(np.rint(scale * (light - darkest)).astype(kind), pixels, lowest)
    return DeepFilm(values, levels, -scale * darkest, scale * (1.0 - darkest))


def _light(pixels: Values, bits: int, ds: Dataset, remarks: list[str]) -> tuple[int, Doubles, bool]:
    """Returns the lowest stored value, how light each from it to the highest is, and whether the file tells that.

    0 is black and 1 is white; what lies outside of a window is below or above.
    """
    signed = pixels.dtype.kind == "i"
    padding = _padding(ds, signed)
    body = pixels
    if padding is not None:
        body = pixels[(pixels < padding[0]) | (pixels > padding[1])]
        if body.size == 0:
            body = pixels
    lowest, highest = int(pixels.min()), int(pixels.max())
    stored = np.arange(lowest, highest + 1)
    possible = np.array([-(1 << (bits - 1)), (1 << (bits - 1)) - 1] if signed else [0, (1 << bits) - 1])
    with np.errstate(all="ignore"):  # slopes and windows of any size
        # Twice the same function: of the values that are there, and of the ends of those that could be.
        shown, ends = np.split(_modality(np.append(stored, possible).astype(np.float64), signed, ds, remarks), [-2])
        light = _voi(shown, bool(ends.min() < 0), ds, remarks)
        told = light is not None
        if light is None:
            low, high = film_range(body) if bits > 8 else (body.min(), body.max())
            seen = shown[int(low) - lowest : int(high) - lowest + 1]
            light = (shown - seen.min()) / (np.ptp(seen) or 1.0)
        light = np.nan_to_num(light)
    # In the digital X-ray module INVERSE goes with MONOCHROME1 and means the same inversion, not a second one
    # (PS3.3 C.8.11.3).
    if text(ds, "PhotometricInterpretation") == "MONOCHROME1" or text(ds, "PresentationLUTShape") == "INVERSE":
        light = 1.0 - light
    if padding is not None:
        # Outside of the film is dark, whichever way round the film is stored.
        light[(stored >= padding[0]) & (stored <= padding[1])] = 0.0
    return lowest, light, told


def _with_sign(word: int, signed: bool) -> int:
    return word - 65536 if signed and word >= 32768 else word


def _padding(ds: Dataset, signed: bool) -> tuple[int, int] | None:
    """Returns the lowest and highest stored value that stands for "no film here", if the file has one.

    Its sign is that of the pixels, whatever type the element was written with (PS3.3 C.7.5.1.1.2).
    """
    value, limit = words(ds, "PixelPaddingValue"), words(ds, "PixelPaddingRangeLimit")
    if value.size == 0:
        return None
    ends = [_with_sign(int(end[0]), signed) for end in (value, limit) if end.size]
    return min(ends), max(ends)


def _modality(values: Doubles, signed: bool, ds: Dataset, remarks: list[str]) -> Doubles:
    """Applies the modality LUT or, without one, slope and intercept (PS3.3 C.11.1).

    A slope of 0 would make one value of all; it is left out, and the intercept with it, as dcmtk does.
    """
    table = _table(ds, "ModalityLUTSequence", signed, "modality", remarks)
    if table is not None:
        return _look_up(values, *table[:2])
    if not text(ds, "RescaleSlope") and not text(ds, "RescaleIntercept"):
        return values
    slope, intercept = next(iter(numbers(ds, "RescaleSlope")), None), next(iter(numbers(ds, "RescaleIntercept")), None)
    if slope is None or intercept is None or slope == 0:
        why = "slope is 0" if slope == 0 else "slope or intercept is missing or not a number"
        remarks.append(f"the file's rescale {why}; both were ignored")
        return values
    return slope * values + intercept


def _voi(values: Doubles, signed: bool, ds: Dataset, remarks: list[str]) -> Doubles | None:
    """Returns 0 (black) to 1 (white) by the VOI LUT or the first usable window (PS3.3 C.11.2), None without either.

    Args:
        values: What the modality step gives.
        signed: Whether it can give values below zero.
        ds: The tags.
        remarks: Gets a sentence for each element that was left out.
    """
    table = _table(ds, "VOILUTSequence", signed, "VOI", remarks)
    if table is not None:
        entries, first, bits = table
        return _look_up(values, entries, first) / ((1 << bits) - 1)
    function = text(ds, "VOILUTFunction")
    if function not in ("", "LINEAR", "LINEAR_EXACT", "SIGMOID"):
        remarks.append("the file's window has an unknown function; it was taken as linear")
    exact = function == "LINEAR_EXACT"
    # From 1 on where the function is LINEAR, above 0 elsewhere (PS3.3 C.11.2.1.2.1, C.11.2.1.3).
    narrowest = 0.0 if exact or function == "SIGMOID" else 1.0
    centres, widths = numbers(ds, "WindowCenter"), numbers(ds, "WindowWidth")
    for n, (centre, width) in enumerate(zip(centres, widths, strict=False)):
        if centre is None or width is None or width <= 0 or width < narrowest:
            continue
        if n:
            remarks.append("the file's first window cannot be used; the next one was")
        if function == "SIGMOID":
            return 1.0 / (1.0 + np.exp(-4.0 * (values - centre) / width))
        if exact:
            return (values - centre) / width + 0.5
        if width == 1:
            return (values > centre - 0.5).astype(np.float64)
        return (values - (centre - 0.5)) / (width - 1) + 0.5
    if any(texts(ds, "WindowCenter") + texts(ds, "WindowWidth")):
        remarks.append("the file's window cannot be used and was ignored")
    return None


def _look_up(values: Doubles, entries: npt.NDArray[np.uint16], first: int) -> Doubles:
    """Values below `first` get the first entry, values behind the last entry get the last (PS3.3 C.11.1.1.1)."""
    return entries[np.rint(values - first).clip(0, len(entries) - 1).astype(np.int64)].astype(np.float64)


def _table(
    ds: Dataset, keyword: str, signed: bool, kind: str, remarks: list[str]
) -> tuple[npt.NDArray[np.uint16], int, int] | None:
    """Returns entries, first mapped value and bits of the first usable table of a LUT sequence; see `_entries`."""
    stated = False
    try:
        for item in items(ds, keyword):
            stated = True
            found = _entries(item, signed)
            if found is not None:
                return found
    except Exception:
        # pydicom raises nearly anything at a garbled sequence.
        stated = True
    if stated:
        remarks.append(f"the file's {kind} look-up table cannot be used and was ignored")
    return None


def _entries(item: Dataset, signed: bool) -> tuple[npt.NDArray[np.uint16], int, int] | None:
    """Reads one table (PS3.3 C.11.1.1.1 and C.11.2.1.1).

    Read here and not by `pydicom.pixels.apply_voi_lut`: that takes the index modulo 256 where the entries have 8 bits,
    and cannot read entries of 9, 11 or more bits in a modality LUT. Where descriptor and data disagree:

    - Number of entries: 0 means 65,536. If the data have another number of words, the data are right, as dcmtk has it;
      but zeros behind the stated end of a rising table only fill up. Half the number means entries of 8 bits, two in a
      word; not if the descriptor says 9 to 15 bits and no word has more.
    - First value mapped: signed if what goes in can be below zero. That is PixelRepresentation for the modality LUT,
      and for the VOI LUT what the modality step can give, whatever type the element was written with.
    - Bits: those that are stated, unless an entry has more, or they are stated as 16: that is often the container, and
      the entries tell the real number.
    """
    descriptor, data = words(item, "LUTDescriptor"), words(item, "LUTData")[:_MAX_ENTRIES]
    if descriptor.size != 3 or data.size == 0:
        return None
    count, first, bits = (int(value) for value in descriptor)
    count = count or _MAX_ENTRIES
    if data.size == (count + 1) // 2 < count and not (8 < bits < 16 and int(data.max()) >> bits == 0):
        data = data.astype("<u2").view(np.uint8)[:count].astype(np.uint16)  # the lower half of a word comes first
    elif count < data.size and not data[count:].any() and data[count - 1] >= data[0]:
        data = data[:count]
    needed = int(data.max()).bit_length()
    return data, _with_sign(first, signed), bits if needed <= bits < 16 else max(needed, 1)
