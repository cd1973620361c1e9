"""Times one film from disk to verdict in a new process, in parts. `end_to_end.py` runs it as a script.

    python oneshot.py pneumo|bare cold|warm BUNDLE FILE FILM...

The verdicts go to stdout. The last line of stderr has the parts in milliseconds and, on Linux, the most memory that the
process has held, in bytes. `pneumo cold` is the command `pneumo-infer` itself, with a clock around the loading of the
model; its answer has the times of decoding and inference. `warm` is the median over `REPEATS` films with a loaded
model. Nothing may be imported here before the clock runs. So it is a script: `-m` would import more.
"""

from __future__ import annotations

import time

START = time.perf_counter()

import sys  # noqa: E402
from collections.abc import Callable  # noqa: E402
from typing import Any  # noqa: E402

REPEATS = 30

Parts = dict[str, float]


def main() -> None:
    """Reports the parts."""
    kind, mode, bundle, file, *films = sys.argv[1:]
    parts = {"pneumo": _pneumo, "bare": _bare}[kind](mode, bundle, file, films)
    peak = _peak_rss()
    import json

    print(json.dumps({"parts": parts, "peak_rss": peak}), file=sys.stderr)


def _peak_rss() -> int | None:
    """As `pneumo_bench.machine.peak_rss`, without what that would import."""
    try:
        with open("/proc/self/status", encoding="utf-8") as status:  # noqa: PTH123 - pathlib would be imported for it
            return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None


def _pneumo(mode: str, bundle: str, file: str, films: list[str]) -> Parts:
    from pneumo_edge import cli
    from pneumo_edge.classifier import Classifier

    if file.endswith(".onnx"):
        import onnxruntime  # noqa: F401
    else:
        import ai_edge_litert.interpreter  # noqa: F401

    if mode == "cold":
        return _command(cli, Classifier, [films[0], "--model", bundle, "--file", file, "--format", "json"])
    import json

    classifier = Classifier.load(bundle, file=file)

    def judge(film: str) -> Parts:
        start = time.perf_counter()
        answer = classifier.predict(film)
        judged = time.perf_counter()
        print(json.dumps(answer.record()), flush=True)
        printed = time.perf_counter()
        decode = answer.milliseconds["read"]
        # What the verdict costs beyond the engine belongs to the inference.
        return {"decode": decode, "infer": (judged - start) * 1e3 - decode, "print": (printed - judged) * 1e3}

    return _warm(judge, films)


def _command(cli: Any, classifier: Any, arguments: list[str]) -> Parts:
    """Runs the command. `answer` is the time after loading: decoding, inference, printing."""
    load, clock = classifier.load, []

    def timed_load(*given: Any, **named: Any) -> Any:
        clock.append(time.perf_counter())
        loaded = load(*given, **named)
        clock.append(time.perf_counter())
        return loaded

    classifier.load = timed_load
    code = cli.app(arguments, prog_name="pneumo-infer", standalone_mode=False)
    end = time.perf_counter()
    if code:
        sys.exit(code)
    called, loaded = clock
    return {"import": (called - START) * 1e3, "load": (loaded - called) * 1e3, "answer": (end - loaded) * 1e3}


def _bare(mode: str, bundle: str, file: str, films: list[str]) -> Parts:
    """Does what anybody would write in ten lines, without a check of the file, the picture or the answer."""
    import numpy as np
    import onnxruntime
    from PIL import Image

    imported = time.perf_counter()
    session = onnxruntime.InferenceSession(f"{bundle}/{file}")
    size = session.get_inputs()[0].shape[1]
    loaded = time.perf_counter()

    def judge(film: str) -> Parts:
        start = time.perf_counter()
        pixels = np.asarray(Image.open(film).convert("L").resize((size, size), Image.Resampling.BICUBIC))
        decoded = time.perf_counter()
        (logit,) = session.run(["logit"], {"image": pixels[np.newaxis, :, :, np.newaxis]})
        inferred = time.perf_counter()
        print(1 / (1 + np.exp(-logit[0])), flush=True)
        printed = time.perf_counter()
        times = (decoded - start, inferred - decoded, printed - inferred)
        return {part: seconds * 1e3 for part, seconds in zip(("decode", "infer", "print"), times, strict=True)}

    if mode == "cold":
        return {"import": (imported - START) * 1e3, "load": (loaded - imported) * 1e3} | judge(films[0])
    return _warm(judge, films)


def _warm(judge: Callable[[str], Parts], films: list[str]) -> Parts:
    judge(films[0])
    from statistics import median

    each = [judge(films[i % len(films)]) for i in range(REPEATS)]
    return {part: median(times[part] for times in each) for part in each[0]}


if __name__ == "__main__":
    main()
