"""The way from a film to a verdict."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import chain, islice
from math import ceil, exp, isfinite, log
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from pneumo_edge.backends import Backend, open_backend
from pneumo_edge.bundle import DEFAULT_BUNDLE, ENGINE_OF_SUFFIX, LABELS, Bundle, read_bundle
from pneumo_edge.errors import BundleError, ImageError, MissingExtraError, PneumoError, UsageError

if TYPE_CHECKING:
    from concurrent.futures import Future

    import numpy as np
    import numpy.typing as npt

    from pneumo_edge.preprocess import Film, Source
    from pneumo_edge.region import Region

ENGINE_ORDER = ("tflite", "onnx")
"""Engines in the order in which `auto` takes what is installed. The order is fixed, so that two devices with the same
packages give the same answer. On x86-64 neither is ahead for a single film: they differ by up to a quarter, in both
directions. LiteRT starts in about three quarters of the time and holds three quarters of the memory
(docs/results/engines). On Arm neither was timed."""

REGIONS = ("positive", "all")
"""Films in which regions are outlined: those that are called PNEUMONIA, or all."""

ENGINE_MODULES = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}

UNUSUAL = (
    "the picture is unlike the chest films that the model has learned from: an unusual film, or no frontal chest film"
)
"""Warning where the novelty is above its limit. The distance alone cannot tell which of the two it is."""

_AHEAD = 4
"""Answers that each worker may have ready before they are asked for. It bounds the memory that a large folder takes."""

_CPU_LIMIT = Path("/sys/fs/cgroup/cpu.max")
"""File that tells a Linux container how much of the processors it may use: "200000 100000" is two cores."""


@dataclass(frozen=True)
class Prediction:
    """What the model says of one film. Can be hashed; neither `==` nor the hash looks at the heatmap."""

    path: str
    """What the caller calls the film: its path by default, "-" for bytes."""
    label: str | None
    """"NORMAL" or "PNEUMONIA"; None where the verdict is withheld."""
    probability: float
    """Probability of pneumonia, 0 to 1, calibrated, at the prevalence in force."""
    logit: float
    """What the network puts out, before calibration: any real number; positive speaks for pneumonia."""
    threshold: float
    """Probability from which the label is "PNEUMONIA", 0 to 1."""
    operating_point: str
    """Name of that threshold in the bundle, such as "balanced"."""
    prevalence: float
    """Share of films with pneumonia where `probability` and `threshold` hold."""
    novelty: float
    """Distance from the training films, 0 or more. The limit stands in the bundle, as `novelty_limit` of the file."""
    in_distribution: bool
    """False where the novelty or a check of the picture speaks against a verdict, also where one is forced."""
    warnings: tuple[str, ...]
    """One English sentence each: first why the verdict is withheld, then what else a reader should know."""
    model: str
    """Name of the bundle."""
    file: str
    """Name of the model file in the bundle, such as "model.int8.onnx"."""
    contrast: float
    """Standard deviation of the film's grey levels, of 255, as the model sees them."""
    region: Region | None
    """Where the film shows what speaks for pneumonia; None where the model has no local map."""
    milliseconds: dict[str, float] = field(hash=False)
    """Time that it took, in ms: "read" for decoding and preprocessing, "infer" for the network."""
    heatmap: npt.NDArray[np.float32] = field(repr=False, compare=False)
    """(h, w), positive is evidence for pneumonia; local logits if the head is `local`. Not part of the record."""

    def record(self) -> dict[str, Any]:
        """Returns the JSON record of the command line: everything but the heatmap."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "heatmap"}
        return record | {"region": None if self.region is None else self.region.record()}


@dataclass(frozen=True)
class Failure:
    """A picture that could not be judged, and why."""

    path: str
    """What the caller calls the film."""
    error: str
    """One English sentence that names the film and the remedy."""

    def record(self) -> dict[str, Any]:
        """Returns the JSON record of the command line."""
        return {"path": self.path, "error": self.error}


class Classifier:
    """A model file in an engine, with its calibration. `predict` may be called from several threads.

    It is a context manager, which frees the engine at its end.
    """

    def __init__(
        self,
        bundle: Bundle,
        file: str,
        *,
        operating_point: str | None = None,
        prevalence: float | None = None,
        threads: int | None = None,
        force_verdict: bool = False,
        regions: str = "positive",
    ) -> None:
        """Opens one file of a bundle that `read_bundle` gave; `Classifier.load` is the usual way.

        Raises:
            BundleError: The file is not in the bundle, was changed, or is not accepted by its engine.
            MissingExtraError: The engine of that file is not installed.
            UsageError: No such operating point, a prevalence outside (0, 1), less than one thread, or other regions.
        """
        description = bundle.description
        point = operating_point or description.default_operating_point
        if point not in description.operating_points:
            known = ", ".join(description.operating_points)
            raise UsageError(f"{bundle.folder} has no operating point {point}: it has {known}")
        check_prevalence(prevalence)
        if threads is not None and threads < 1:
            raise UsageError(f"{threads} threads cannot run a model: give 1 or more")
        if regions not in REGIONS:
            raise UsageError(f"there are no regions {regions}: choose {' or '.join(REGIONS)}")
        self.bundle, self.file = bundle, file
        self.operating_point = point
        self.prevalence = description.calibration.prevalence if prevalence is None else prevalence
        self.threads = threads or usable_cores()
        self._threads_side_by_side = threads or 1
        self._force = force_verdict
        self._all_regions = regions == "all"
        self._size = description.input.size
        # Bayes: another prevalence adds the difference of the log odds to the logit. The threshold moves with it, so
        # that the verdict, and with it sensitivity and specificity, stay the same.
        calibration = description.calibration
        self._scale = calibration.scale
        shift = _log_odds(self.prevalence) - _log_odds(calibration.prevalence)
        self._offset = calibration.offset + shift
        self._cut = _log_odds(description.operating_points[point].threshold) + shift
        self._backends: dict[int, Backend] | None = {}
        self._opening = threading.Lock()
        # While an engine opens, Python is free for other threads: Pillow is imported meanwhile.
        threading.Thread(target=import_module, args=("pneumo_edge.plausibility",)).start()
        self._backend(self.threads)
        self._novelty_limit = description.files[file].novelty_limit
        self._region_threshold = description.files[file].region_threshold

    @classmethod
    def load(
        cls,
        bundle: str | Path | None = None,
        *,
        file: str | None = None,
        engine: str = "auto",
        operating_point: str | None = None,
        prevalence: float | None = None,
        threads: int | None = None,
        force_verdict: bool = False,
        regions: str = "positive",
    ) -> Classifier:
        """Opens a bundle, by default the one that comes with pneumo.

        Args:
            bundle: Folder of the bundle, as pneumo-export writes it.
            file: One of its files, such as "model.int8.onnx"; chosen by `engine` otherwise.
            engine: "onnx", "tflite", or "auto" for the first of these two that is installed: LiteRT, ONNX Runtime;
                int8 before fp32.
            operating_point: Name of a threshold in the bundle; the bundle's default otherwise.
            prevalence: Share of films with pneumonia where the model is used, in (0, 1). It moves the probability and
                the threshold by Bayes' rule. The share in the validation films by default.
            threads: Threads for one film. By default `predict` uses all cores for its film, and `predict_batch` judges
                one film on each core.
            force_verdict: Give a label even where the verdict would be withheld.
            regions: "positive" outlines regions in films that are called PNEUMONIA, "all" in every film.

        Raises:
            BundleError, MissingExtraError, UsageError: See `Classifier`.
        """
        found = read_bundle(Path(bundle) if bundle is not None else DEFAULT_BUNDLE)
        if file is None:
            file = choose_file(found, engine)
        elif engine != "auto" and ENGINE_OF_SUFFIX.get(Path(file).suffix) != engine:
            raise UsageError(f"{file} is not a file of the engine {engine}: leave out one of the two")
        return cls(
            found,
            file,
            operating_point=operating_point,
            prevalence=prevalence,
            threads=threads,
            force_verdict=force_verdict,
            regions=regions,
        )

    def predict(self, source: Source, name: str | None = None) -> Prediction:
        """Judges one film.

        Args:
            source: Path, or the bytes of an image file.
            name: Name of the film in the answer; the path by default.

        Raises:
            ImageError: The picture cannot be read.
            MissingExtraError: It is a DICOM file and the extra `dicom` is not installed.
        """
        return self._judge(source, name or _name(source), self.threads)

    def predict_batch(
        self, sources: Iterable[Source | tuple[Source, str]], *, side_by_side: int | None = None
    ) -> Iterator[Prediction | Failure]:
        """Judges many films, several at once, and answers in their order.

        Args:
            sources: Paths, bytes of image files, or pairs of one of these and the film's name in the answer.
            side_by_side: Films judged at the same time; as many as there are cores by default.

        Yields:
            A `Prediction` for each source, or a `Failure` where it cannot be read. Memory does not grow with their
            number.
        """
        sources = iter(sources)
        first = list(islice(sources, 2))
        workers = side_by_side or usable_cores()
        if len(first) < 2 or workers == 1:
            threads = self.threads if len(first) < 2 else self._threads_side_by_side
            for source in chain(first, sources):
                yield self._answer(source, threads)
            return
        from concurrent.futures import ThreadPoolExecutor

        waiting: deque[Future[Prediction | Failure]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            try:
                for source in chain(first, sources):
                    waiting.append(pool.submit(self._answer, source, self._threads_side_by_side))
                    if len(waiting) >= workers * _AHEAD:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:
                for future in waiting:
                    future.cancel()

    def _answer(self, source: Source | tuple[Source, str], threads: int) -> Prediction | Failure:
        source, name = source if isinstance(source, tuple) else (source, _name(source))
        try:
            return self._judge(source, name, threads)
        except (ImageError, MissingExtraError) as error:
            return Failure(name, str(error))

    def _backend(self, threads: int) -> Backend:
        """Returns the engine that uses this number of threads for one film; opens it if it is not open yet."""
        backends = self._backends
        if backends is None:
            raise PneumoError("this Classifier has been closed: load it again")
        with self._opening:
            if threads not in backends:
                data = self.bundle.read_file(self.file)
                engine, name = ENGINE_OF_SUFFIX[Path(self.file).suffix], str(self.bundle.folder / self.file)
                backends[threads] = open_backend(engine, data, self._size, threads, name)
        return backends[threads]

    def _judge(self, source: Source, name: str, threads: int) -> Prediction:
        from pneumo_edge.plausibility import contrast, objections
        from pneumo_edge.preprocess import read_film
        from pneumo_edge.unseen import unseen

        backend = self._backend(threads)
        start = time.perf_counter()
        film = read_film(source, self._size, name)
        doubts = objections(film)
        between = time.perf_counter()
        outputs = backend.run(film.pixels[None])
        read_ms, infer_ms = (between - start) * 1e3, (time.perf_counter() - between) * 1e3
        logit, novelty = float(outputs.logit[0]), float(outputs.novelty[0])
        # Comparisons with NaN are false: without this check the film would be called NORMAL.
        if not isfinite(logit) or not isfinite(novelty):
            raise self._no_number(name)
        if novelty > self._novelty_limit:
            doubts += (UNUSUAL,)
        log_odds = self._scale * logit + self._offset
        verdict = LABELS[log_odds >= self._cut]
        description = self.bundle.description
        label = verdict if not doubts or self._force else None
        return Prediction(
            path=name,
            label=label,
            probability=_sigmoid(log_odds),
            logit=logit,
            threshold=_sigmoid(self._cut),
            operating_point=self.operating_point,
            prevalence=self.prevalence,
            novelty=novelty,
            in_distribution=not doubts,
            warnings=doubts + film.warnings + unseen(film.age_years, film.view, description.provenance.sites),
            model=description.name,
            file=self.file,
            contrast=contrast(film.pixels),
            milliseconds={"read": round(read_ms, 3), "infer": round(infer_ms, 3)},
            region=self._region(outputs.heatmap[0], label, film, name),
            heatmap=outputs.heatmap[0],
        )

    def _region(self, logits: npt.NDArray[np.float32], label: str | None, film: Film, name: str) -> Region | None:
        if self._region_threshold is None:
            return None
        from pneumo_edge.region import find_region

        # In float64 the sum is finite if all numbers are, and takes less time than a check of each.
        if not isfinite(logits.sum(dtype="float64")):
            raise self._no_number(name)
        region = find_region(logits, self._region_threshold, film.width, film.height)
        return region if self._all_regions or label == LABELS[1] else replace(region, polygons=(), area=0.0)

    def _no_number(self, name: str) -> ImageError:
        return ImageError(f"{name}: {self.file} gives no number for this picture: export the model again")

    def __enter__(self) -> Classifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._backends = None


def usable_cores() -> int:
    """Returns the number of cores that this process may use, by its affinity and by the limit of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = map(int, _CPU_LIMIT.read_text(encoding="ascii").split())
        return min(cores, ceil(share / period))
    except (OSError, ValueError, ZeroDivisionError):
        # No container, or one without a limit ("max 100000").
        return cores


def _name(source: Source) -> str:
    return "-" if isinstance(source, bytes) else os.fspath(source)


def choose_file(bundle: Bundle, engine: str) -> str:
    """Returns the best file of a bundle for an engine, or for "auto" the best whose engine is installed.

    Raises:
        BundleError: It has no file for the engine.
        UsageError: There is no such engine.
    """
    if engine == "auto":
        present = [file for e in ENGINE_ORDER if find_spec(ENGINE_MODULES[e]) for file in bundle.files_of_engine(e)]
        # The engine of all files is missing: the error names its extra when the file is opened.
        files = present or [file for e in ENGINE_ORDER for file in bundle.files_of_engine(e)]
    elif engine in ENGINE_OF_SUFFIX.values():
        files = bundle.files_of_engine(engine)
    else:
        raise UsageError(f"there is no engine {engine}: choose auto, onnx or tflite")
    if not files:
        raise BundleError(f"{bundle.folder} has no file for the engine {engine}: export it with that format")
    return files[0]


def _sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x)) if x >= 0 else exp(x) / (1 + exp(x))


def check_prevalence(prevalence: float | None) -> None:
    """Raises UsageError if a share of films with pneumonia is not between 0 and 1; None is the bundle's own."""
    if prevalence is not None and not 0 < prevalence < 1:
        raise UsageError(f"a prevalence of {prevalence:g} is not between 0 and 1: give a share such as 0.2")


def _log_odds(p: float) -> float:
    return log(p) - log(1 - p)
