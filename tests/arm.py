"""Does 64-bit Arm give the same answers? `make test-arm`, on Debian or Ubuntu, as root; no Arm machine is needed.

A Debian arm64 system is unpacked under `.arm/`, pneumo's wheel and its aarch64 wheels are laid into it, and
pneumo-infer judges the same films in it, on two processors that qemu emulates, and on this machine. That proves
answers, never speed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from pneumo_bench.accuracy import validation_split
from pneumo_bench.inputs import PHANTOMS
from pneumo_bench.output import Table, save, show
from pneumo_edge.atomic import replacing_folder
from pneumo_edge.bundle import DEFAULT_BUNDLE, ENGINE_OF_SUFFIX, read_bundle
from pneumo_edge.command_line import FAILED, run, say
from pneumo_edge.errors import PneumoError, UsageError
from pneumo_train.phantom import draw_phantoms

TOLERANCE = 0.01
"""By how much a probability may differ: other kernels sum in another order and round to int8 in other ways."""

FILMS = 40
SUITE, PYTHON = "bookworm", "3.11"
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64")
"""Wheels that this Debian runs; pip does not infer the older ones from the newest."""

REPOSITORY = Path(__file__).resolve().parent.parent
WORK = REPOSITORY / ".arm"
ROOT = WORK / "root"
QEMU = "qemu-aarch64-static"


class Processor(NamedTuple):
    """An Arm core as qemu and Linux name it; what /proc/cpuinfo says of it."""

    device: str
    qemu: str
    features: str
    variant: str
    part: str
    revision: int


_A72 = "fp asimd evtstrm crc32 cpuid"
_A76 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp"
# The second has the int8 dot product (asimddp), for which the engines have kernels of their own.
PROCESSORS = (
    Processor("Raspberry Pi 4", "cortex-a72", _A72, "0x0", "0xd08", 3),
    Processor("Raspberry Pi 5", "cortex-a76", _A76, "0x4", "0xd0b", 1),
)
CORES = 4

VERSIONS = """
import json, platform
from importlib.metadata import version
packages = ("pneumo", "numpy", "pillow", "onnxruntime", "ai-edge-litert")
print(json.dumps({"architecture": platform.machine(), "python": platform.python_version()}
                 | {package: version(package) for package in packages}))
"""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def check(
    run_folder: Annotated[
        Path | None, typer.Option("--run", metavar="RUN", help="Run whose validation films are judged; else phantoms.")
    ] = None,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the films of the run are now.")] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="The one that comes with pneumo if none.")
    ] = None,
) -> None:
    """Judges films on an emulated 64-bit Arm system and on this machine, and compares the answers."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        raise UsageError(f"this runs on x86-64 Linux alone, not on {sys.platform} {platform.machine()}")
    if os.geteuid() != 0:
        raise UsageError("entering the Arm system (chroot) needs root: call sudo make test-arm")
    bundle = read_bundle(model or DEFAULT_BUNDLE)
    films, source = _choose_films(run_folder, data)
    _install_tools()
    if not ROOT.is_dir():
        _make_root()
    _install_pneumo()
    _lay_films(films)
    if model is not None:
        shutil.rmtree(ROOT / "bundle", ignore_errors=True)
        shutil.copytree(model, ROOT / "bundle")

    results = []
    folder, command = ROOT / "films", str(Path(sys.executable).with_name("pneumo-infer"))
    for file, stated in bundle.description.files.items():
        arguments = ["--file", file, "--format", "json", "--force-verdict"]
        say(f"{file}: {len(films)} films on this machine")
        here = _call([command, *(["--model", str(model)] if model else []), *arguments, str(folder)])
        for processor in PROCESSORS:
            say(f"{file}: {len(films)} films on an emulated {processor.device}")
            inside = ["--model", "/bundle"] if model else []
            there = _on_arm(processor, "/opt/pneumo/bin/pneumo-infer", *inside, *arguments, "/films")
            found = compare(_records(here), _records(there))
            engine = ENGINE_OF_SUFFIX[Path(file).suffix]
            which = {"processor": processor.qemu, "device": processor.device}
            results.append({"file": file, "engine": engine, "sha256": stated.sha256} | which | found)

    # By name: where the folders lie on this machine is no part of a result.
    options = [f"RUN=runs/{run_folder.resolve().name}"] if run_folder else []
    options += [f"BUNDLE={bundle.description.name}"] if model else []
    record = {
        "made": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["make", "test-arm", *options]),
        "passed": all(result["passed"] for result in results),
        "tolerance": TOLERANCE,
        "model": bundle.description.name,
        "films": {"count": len(films), "source": source},
        "emulator": _call([QEMU, "--version"]).splitlines()[0],
        "here": json.loads(_call([sys.executable, "-c", VERSIONS])),
        "arm": json.loads(_on_arm(PROCESSORS[0], "-c", VERSIONS)),
        "results": results,
    }
    tables = _tables(record)
    show(tables)
    # What stands in docs/ was measured on real films: a trial with phantoms leaves it alone.
    output = REPOSITORY / "docs/results/arm" if run_folder else WORK / "results"
    save(output, "results", record, tables)
    say(f"written to {output.relative_to(REPOSITORY)}: results.json, results.md")
    if not record["passed"]:
        raise typer.Exit(FAILED)


def compare(here: Sequence[Mapping[str, Any]], there: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compares the records that pneumo-infer printed of the same films, in the same order, on two machines.

    A verdict is the same where the label is, and where both or neither machine would withhold it.
    """
    pairs = list(zip(here, there, strict=True))
    same = sum(a["label"] == b["label"] and a["in_distribution"] == b["in_distribution"] for a, b in pairs)
    probability, logit = (max(abs(a[key] - b[key]) for a, b in pairs) for key in ("probability", "logit"))
    return {
        "same_verdicts": same,
        "max_probability_difference": probability,
        "max_logit_difference": logit,
        "pneumonia": sum(record["label"] == "PNEUMONIA" for record in here),
        "withheld": sum(not record["in_distribution"] for record in here),
        "passed": same == len(pairs) and probability <= TOLERANCE,
    }


def _choose_films(run_folder: Path | None, data: Path | None) -> tuple[list[Path], str]:
    """Returns films spread evenly over the validation films, in the order of the list, and what they are."""
    if run_folder is None:
        if data is not None:
            raise UsageError("DATA says where the films of a run are: name the run with RUN=runs/NAME")
        drawn = draw_phantoms(WORK / "phantoms", films=5 * FILMS)
        films, source = sorted((drawn / "val").rglob("*.jpeg")), PHANTOMS
    else:
        split = validation_split(run_folder, [] if data is None else [str(data)])
        films = [split.roots[film.source] / film.path for film in split.files]
        source = (
            f"{', '.join(root.name for root in split.roots)}, validation films of the run {run_folder.resolve().name}"
        )
    count = min(FILMS, len(films))
    return [films[i * len(films) // count] for i in range(count)], source


def _install_tools() -> None:
    tools = ("debootstrap", "dpkg-deb", QEMU)
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise PneumoError(f"{' and '.join(missing)} cannot be found: install them")
    say("installing debootstrap and qemu-user-static")
    _call(["apt-get", "update", "-qq"])
    _call(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "debootstrap", "qemu-user-static"])


def _make_root() -> None:
    say(f"unpacking Debian {SUITE} for arm64: a minute or two, once")
    # The folder gets its name last: one that was interrupted is not taken for whole, and goes.
    for left in WORK.glob(f".{ROOT.name}.*"):
        shutil.rmtree(left)
    with replacing_folder(ROOT) as root:
        _call(["debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", "--include=python3", SUITE, str(root)])
        # Instead of the second stage, which would need binfmt: the files are enough, nothing must be configured.
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            _call(["dpkg-deb", "--extract", str(package), str(root)])
            package.unlink()


def _install_pneumo() -> None:
    say("building the wheel, and laying it and its aarch64 wheels into the Arm system")
    wheels, site = WORK / "wheel", ROOT / "opt/pneumo"
    for old in (wheels, site):
        shutil.rmtree(old, ignore_errors=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    _call([*pip, "wheel", "--no-deps", "--wheel-dir", str(wheels), str(REPOSITORY)])
    (wheel,) = wheels.glob("*.whl")
    install = [*pip, "install", f"--target={site}", "--no-compile", "--only-binary=:all:"]
    _call([*install, f"--python-version={PYTHON}", *(f"--platform={name}" for name in PLATFORMS), f"{wheel}[onnx]"])
    shutil.copy(shutil.which(QEMU) or QEMU, ROOT / "usr/bin" / QEMU)


def _lay_films(films: Sequence[Path]) -> None:
    folder = ROOT / "films"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for i, film in enumerate(films):
        shutil.copy(film, folder / f"{i:02}{film.suffix}")


def _on_arm(processor: Processor, *arguments: str) -> str:
    """Runs Python in the Arm system."""
    # The engines choose kernels by what Linux says of the processor, and LiteRT goes without XNNPACK where it says
    # nothing. qemu does not say it, and this machine's /proc and /sys would say what is not so.
    lines = (
        f"Features\t: {processor.features}",
        "CPU implementer\t: 0x41",
        "CPU architecture: 8",
        f"CPU variant\t: {processor.variant}",
        f"CPU part\t: {processor.part}",
        f"CPU revision\t: {processor.revision}",
    )
    cores = ["\n".join((f"processor\t: {i}", *lines)) for i in range(CORES)]
    (ROOT / "proc/cpuinfo").write_text("\n\n".join(cores) + "\n\n")
    listed = ROOT / "sys/devices/system/cpu"
    listed.mkdir(parents=True, exist_ok=True)
    for name in ("present", "possible"):
        (listed / name).write_text(f"0-{CORES - 1}\n")
    python = ["chroot", str(ROOT), f"/usr/bin/{QEMU}", "-cpu", processor.qemu, "/usr/bin/python3", *arguments]
    # An environment of its own: this machine's may hold settings for its own processor.
    return _call(python, {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8", "PYTHONPATH": "/opt/pneumo"})


def _call(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """Returns what a command printed.

    Raises:
        PneumoError: It failed.
    """
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()[-5:]
        raise PneumoError(f"{shlex.join(command)} failed with exit code {done.returncode}: {' / '.join(said)}")
    return done.stdout


def _records(lines: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines.splitlines()]


def _tables(record: Mapping[str, Any]) -> list[Table]:
    count = record["films"]["count"]
    rows: list[tuple[str, ...]] = [
        (
            result["file"],
            result["engine"],
            f"{result['device']} ({result['processor']})",
            f"{result['same_verdicts']} of {count}",
            f"{result['max_probability_difference']:.2g}",
            f"{result['max_logit_difference']:.2g}",
            "yes" if result["passed"] else "NO",
        )
        for result in record["results"]
    ]
    first = record["results"][0]
    notes = (
        f"{count} films: {record['films']['source']}; model {record['model']}; with {first['file']}, on this machine, "
        f"{first['pneumonia']} look like PNEUMONIA, and the verdict on {first['withheld']} would be withheld",
        "the differences are the largest over all films; passed: every verdict the same, no probability more than "
        f"{TOLERANCE} apart",
        f"64-bit Arm was emulated ({record['emulator']}): this proves answers, never speed",
    )
    columns = ("file", "engine", "processor", "same verdict", "probability differs by", "logit differs by", "passed")
    versions = [tuple(record[side].values()) for side in ("arm", "here")]
    return [
        Table("pneumo-infer on 64-bit Arm, against this machine", columns, rows, notes),
        Table("What ran", tuple(record["here"]), versions),
    ]


if __name__ == "__main__":
    run(app, "test-arm")
