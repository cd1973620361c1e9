"""Whether the page of pneumo-web answers as pneumo-infer does: the same films through both, array and verdict."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pneumo_bench.agreement import litert
from pneumo_bench.inputs import films_below, open_bundles
from pneumo_bench.machine import Watch, describe_machine
from pneumo_bench.output import Table, header, machine_notes
from pneumo_bench.web import blank, driven, served
from pneumo_edge.bundle import Bundle
from pneumo_edge.calibrate.platt import probabilities
from pneumo_edge.classifier import Classifier, Prediction
from pneumo_edge.command_line import tracked
from pneumo_edge.errors import DataError
from pneumo_edge.preprocess import read_film
from pneumo_export.npm import PACKAGES
from pneumo_export.web import write_web

_JUDGE = """async ({ address, name, size }) => {
  const beside = (file) => new URL(file, document.querySelector("script[type=module]").src);
  const [api, { readFilm }] = await Promise.all(["api.js", "read.js"].map((each) => import(beside(each))));
  const { limits } = await (await fetch(beside("constants.json"))).json();
  const data = await (await fetch(address, { cache: "no-store" })).arrayBuffer();
  const { pixels } = await readFilm(new Uint8Array(data), name, size, limits);
  const { key } = await api.hand(new File([data], name), () => {});
  const { record, error } = await api.film(key);
  await api.remove(key);
  if (error) throw new Error(error);
  const { probability, in_distribution } = record;
  return { pixels: btoa(String.fromCharCode(...pixels)), probability, in_distribution };
}"""


@dataclass
class _Side:
    """How far one way lies from pneumo-infer, film by film."""

    levels: list[int] = field(default_factory=list)
    """Of the pixel that differs most."""
    pixels: list[float] = field(default_factory=list)
    """Share of those that differ."""
    probability: list[float] = field(default_factory=list)
    flips: list[dict[str, float]] = field(default_factory=list)
    withheld: int = 0

    def add(self, probability: float, want: Prediction) -> None:
        self.probability.append(abs(probability - want.probability))
        if (probability >= want.threshold) != (want.probability >= want.threshold):
            self.flips.append({"probability": probability, "native": want.probability, "threshold": want.threshold})

    def add_pixels(self, found: npt.NDArray[np.uint8], want: npt.NDArray[np.uint8]) -> None:
        away = np.abs(found.astype(int) - want.astype(int))
        self.levels.append(int(away.max()))
        self.pixels.append(float((away > 0).mean()))

    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "films": len(self.probability),
            "probability_difference": {"mean": float(np.mean(self.probability)), "max": max(self.probability)},
            "flips": self.flips,
            "withheld_otherwise": self.withheld,
        }
        if self.levels:
            found["arrays"] = {
                "equal": self.levels.count(0),
                "most_levels": max(self.levels),
                "pixels_that_differ": float(np.mean(self.pixels)),
                "pixels_that_differ_most": max(self.pixels),
            }
        return found


def compare_web(*, bundle: Path | None, folders: Sequence[Path], films: int) -> dict[str, Any]:
    """Judges films by the page and by the native runtime; returns what `agreement.json` holds.

    Args:
        bundle: The model; the one that comes with pneumo by default.
        folders: Of JPEG films, which are also judged as the PNG that Pillow makes of them: then both decode the same.
        films: How many of all folders together, as many of each.

    Raises:
        DataError: A folder holds no JPEG film.
        MissingExtraError: Playwright is not installed.
        PneumoError: There is no Chromium, or the page gives no verdict.
    """
    chosen = {
        f"{each.resolve().parent.name}/{each.resolve().name}": _spread(each, films // len(folders)) for each in folders
    }
    paths = [path for found in chosen.values() for path in found]
    watch = Watch()
    [(_, found)] = open_bundles([] if bundle is None else [bundle]).items()
    sides = {"PNG": _Side(), "JPEG": _Side()}
    kernels = _Side()
    with (
        TemporaryDirectory(prefix="pneumo-bench-") as scratch,
        Classifier.load(bundle, engine="tflite", threads=1) as classifier,
        driven() as chromium,
    ):
        site = Path(scratch) / "site"
        write_web(found, site)
        other = litert("BUILTIN_WITHOUT_DEFAULT_DELEGATES")(found.read_file(classifier.file))
        size = found.description.input.size
        with served(site) as address, blank(chromium) as page:
            page.goto(address)
            for path in tracked(paths, "films", len(paths)):
                Image.open(path).save(site / "film.png")
                for kind, file in {"PNG": site / "film.png", "JPEG": path}.items():
                    (site / "film").write_bytes(file.read_bytes())
                    told = page.evaluate(_JUDGE, {"address": "film", "name": path.name, "size": size})
                    want = classifier.predict(file)
                    pixels = read_film(file, size).pixels
                    side = sides[kind]
                    side.add(told["probability"], want)
                    side.withheld += told["in_distribution"] != want.in_distribution
                    decoded = np.frombuffer(base64.b64decode(told["pixels"]), np.uint8)
                    side.add_pixels(decoded, pixels.ravel())
                    if kind == "PNG":
                        kernels.add(_probability(other(pixels[np.newaxis]), found), want)
    return header("web-agreement", describe_machine(), watch.finish()) | {
        "settings": {
            "films": {name: len(each) for name, each in chosen.items()},
            "model": found.description.name,
            "file": classifier.file,
            "runtime": {package.name: package.version for package in PACKAGES},
        },
        "browser": {kind: side.record() for kind, side in sides.items()},
        "native_without_xnnpack": kernels.record(),
    }


def _probability(logit: float, bundle: Bundle) -> float:
    return float(probabilities(np.array([logit]), bundle.description.calibration)[0])


def _spread(folder: Path, count: int) -> list[Path]:
    found = [path for path in films_below(folder) if path.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        raise DataError(f"{folder} holds no JPEG films: give a folder with X-ray images to --films")
    return found[:: max(1, len(found) // count)][:count]


def web_agreement_table(record: dict[str, Any]) -> Table:
    """Returns the table of a record of `compare_web`."""
    settings = record["settings"]
    sides = {f"{kind} in the browser": found for kind, found in record["browser"].items()}
    sides["the PNG's arrays in LiteRT without XNNPACK"] = record["native_without_xnnpack"]
    rows: list[tuple[str, ...]] = []
    for name, side in sides.items():
        arrays, away = side.get("arrays"), side["probability_difference"]
        rows.append(
            (
                name,
                f"{side['films']:,}",
                "" if arrays is None else f"{arrays['equal']:,}",
                "" if arrays is None else f"{arrays['most_levels']}",
                "" if arrays is None else f"{arrays['pixels_that_differ']:.2%}",
                f"{away['mean']:.4f}",
                f"{away['max']:.4f}",
                f"{len(side['flips'])}",
                f"{side['withheld_otherwise']}" if arrays is not None else "",
            )
        )
    films = ", ".join(f"{count} of {name}" for name, count in settings["films"].items())
    return Table(
        title="The page of pneumo-web against pneumo-infer, the same file of the model",
        columns=(
            "way", "films", "arrays equal", "most grey levels", "pixels that differ",
            "probability, mean", "probability, most", "verdicts that turn", "withheld otherwise",
        ),
        rows=rows,
        notes=(
            f"{settings['model']}, {settings['file']}; films: {films}; the PNG is what Pillow makes of the JPEG; "
            "a verdict turns where the probability lies on the other side of the threshold, withheld or not; the last "
            "row says what other int8 kernels for the same processor do to the same arrays",
            *machine_notes(record["machine"], record["load"]),
        ),
    )  # fmt: skip
