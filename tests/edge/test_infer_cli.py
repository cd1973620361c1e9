"""`pneumo-infer` as a user runs it: the installed command, in a process of its own."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer.main
from PIL import Image

from pneumo_edge import __version__
from pneumo_edge.bundle import Ages, Provenance, Site
from pneumo_edge.cli import _overlay_name, app
from pneumo_edge.command_line import NOT_A_DIAGNOSIS
from pneumo_edge.film_files import files_like

Infer = Callable[..., "subprocess.CompletedProcess[Any]"]
Command = Callable[..., list[str | Path]]
WriteBundle = Callable[..., Path]

posix = pytest.mark.skipif(os.name != "posix", reason="this is about POSIX")


def save(path: Path, mean: int, **options: Any) -> Path:
    """Writes a grey picture, 128 x 128, that the tiny model calls PNEUMONIA if `mean` is 112 or more."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = np.full((128, 128), mean - 24, np.uint8)
    grey[:, 64:] = mean + 24
    Image.fromarray(grey).save(path, **options)
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as users have them: films of several formats among all sorts of other things."""
    folder = tmp_path_factory.mktemp("films")
    save(folder / "a.png", 150)
    save(folder / "B.JPG", 60, format="JPEG")
    save(folder / "c.tif", 170)
    save(folder / "d.webp", 50, lossless=True)
    (folder / "e_text.png").write_text("no picture")
    Image.fromarray(np.full((128, 128, 3), (200, 30, 30), np.uint8)).save(folder / "f_red.bmp")
    (folder / "notes.txt").write_text("not a film")
    (folder / "._a.png").write_bytes(b"\x00\x05\x16\x07")
    (folder / ".DS_Store").touch()
    save(folder / "__MACOSX" / "a.png", 150)
    save(folder / ".hidden" / "a.png", 150)
    save(folder / "sub" / "a.png", 40)
    save(folder / "sub" / "deeper" / "a.png", 160)
    save(folder / "x.png" / "inside.png", 70)
    if os.name == "posix":
        (folder / "loop.png").symlink_to("loop.png")
        (folder / "sub" / "round").symlink_to(folder)
        os.mkfifo(folder / "pipe.png")
    return folder


TOP = ["B.JPG", "a.png", "c.tif", "d.webp", "e_text.png", "f_red.bmp"] + ["loop.png"] * (os.name == "posix")
BELOW = ["sub/a.png", "sub/deeper/a.png", "x.png/inside.png"]
VERDICTS = {
    "B.JPG": "NORMAL",
    "a.png": "PNEUMONIA",
    "c.tif": "PNEUMONIA",
    "d.webp": "NORMAL",
    "f_red.bmp": None,
    "sub/a.png": "NORMAL",
    "sub/deeper/a.png": "PNEUMONIA",
    "x.png/inside.png": "NORMAL",
}


def records(output: str) -> list[dict[str, Any]]:
    return [json.loads(line, parse_constant=pytest.fail) for line in output.splitlines()]


def no_traceback(stderr: str) -> bool:
    return not any(word in stderr for word in ("Traceback", "Exception ignored", "Warning"))


# ------------------------------------------------------------------------------------------- what is found


def test_a_folder_is_judged_in_order_and_bad_files_do_not_stop_it(infer: Infer, films: Path) -> None:
    done = infer(films, "--format", "json")
    answers = records(done.stdout)
    assert [answer["path"] for answer in answers] == [str(films / name) for name in TOP]
    for name, answer in zip(TOP, answers, strict=True):
        if name in VERDICTS:
            assert answer["label"] == VERDICTS[name]
            assert answer["in_distribution"] is (answer["label"] is not None)
            assert list(answer) == [
                "path", "label", "probability", "logit", "threshold", "operating_point", "prevalence", "novelty",
                "in_distribution", "warnings", "model", "file", "contrast", "region", "milliseconds",
            ]  # fmt: skip
        else:
            assert list(answer) == ["path", "error"]
    failed = len(TOP) - 5
    assert done.stderr.splitlines() == [NOT_A_DIAGNOSIS, f"{failed} of {len(TOP)} images could not be judged"]
    assert done.returncode == 1


def test_recursive_goes_to_any_depth_but_not_in_circles(infer: Infer, films: Path) -> None:
    done = infer(films, "--recursive", "--format", "json")
    assert [Path(r["path"]).relative_to(films).as_posix() for r in records(done.stdout)] == TOP + BELOW
    assert [r["label"] for r in records(done.stdout) if "label" in r] == list(VERDICTS.values())
    assert done.returncode == 1


def test_paths_folders_and_globs_keep_their_order(infer: Infer, films: Path) -> None:
    done = infer("c.tif", "sub", "[cd].*", "x*", "none.png", "no*ne", "a.png", "a.png", "--format", "json", cwd=films)
    paths = [Path(record["path"]).as_posix() for record in records(done.stdout)]
    assert paths == ["c.tif", "sub/a.png", "c.tif", "d.webp", "x.png/inside.png", "none.png", "no*ne", "a.png", "a.png"]
    errors = {r["path"]: r["error"] for r in records(done.stdout) if "error" in r}
    assert errors == {name: f"{name} does not exist: check the path" for name in ("none.png", "no*ne")}
    assert done.returncode == 1


def test_what_lies_in_a_folder_is_a_film_by_suffix_or_without_one_by_content(
    infer: Infer, films: Path, tmp_path: Path
) -> None:
    png = (films / "a.png").read_bytes()
    for name in ("scan", "1.2.840.10008.5", "IM-0001-0001", "a.jfif", "b.gif", "c.txt", "d.dat", "-"):
        (tmp_path / name).write_bytes(png)
    (tmp_path / "dicom").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (tmp_path / "README").write_text("no film")
    (tmp_path / "empty").touch()
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "dead").symlink_to("nowhere")
    done = infer(tmp_path, "--format", "json")
    found = [Path(record["path"]).name for record in records(done.stdout)]
    assert found == ["-", "1.2.840.10008.5", "IM-0001-0001", "a.jfif", "b.gif", "dicom", "scan"]
    assert [r["path"] for r in records(done.stdout) if "error" in r] == [str(tmp_path / "dicom")]


@posix
def test_a_quoted_glob_of_any_depth_does_not_go_in_circles(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(films)
    (films / "sub" / "again").symlink_to(films / "sub")
    try:
        assert files_like("**/a.png") == ["a.png", "sub/a.png", "sub/deeper/a.png"]
        assert files_like("su?/**") == ["sub/a.png", "sub/deeper/a.png"]
        assert files_like(f"{films}/**/*.tif") == [f"{films}/c.tif"]
        assert files_like("sub/**/dee*/*.png") == ["sub/deeper/a.png"]
        assert files_like("[ac]**.*") == ["a.png", "c.tif"]
        assert files_like("**/none*.png") == []
    finally:
        (films / "sub" / "again").unlink()


def test_overlays_are_no_films(infer: Infer, films: Path, tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("a.png", "sub/b.png"):
        (tmp_path / name).write_bytes((films / "a.png").read_bytes())
    for _ in range(2):
        done = infer(tmp_path, "--recursive", "--heatmap", tmp_path / "maps", "--format", "json")
        assert [Path(r["path"]).name for r in records(done.stdout)] == ["a.png", "b.png"]
    assert sorted(path.name for path in (tmp_path / "maps").iterdir()) == ["a.png", "b.png"]


def test_a_folder_that_cannot_be_searched_is_said_and_does_not_stop_the_others(
    films: Path, bundle: Path, tmp_path: Path
) -> None:
    # As root everything can be searched: the folder has to say no by other means.
    closed = tmp_path / "closed"
    closed.mkdir()
    (tmp_path / "a.png").write_bytes((films / "a.png").read_bytes())
    code = f"""
import os
scandir = os.scandir
def refuse(path):
    if os.fspath(path) == {str(closed)!r}:
        raise PermissionError(13, "Permission denied", path)
    return scandir(path)
os.scandir = refuse
from pneumo_edge.cli import main
main()
"""
    line = [sys.executable, "-c", code, str(tmp_path), "--recursive", "--model", str(bundle)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert "a.png: PNEUMONIA" in done.stdout
    assert f"{closed} cannot be searched for films: Permission denied" in done.stderr.splitlines()
    assert done.returncode == 1


def test_standard_input(infer: Infer, films: Path, tmp_path: Path) -> None:
    data = (films / "a.png").read_bytes()
    done = infer("-", films / "d.webp", "--format", "json", "--heatmap", tmp_path, input=data, text=False)
    assert [(r["path"], r["label"]) for r in records(done.stdout.decode())] == [
        ("-", "PNEUMONIA"),
        (str(films / "d.webp"), "NORMAL"),
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.png", "stdin.png"]
    assert done.returncode == 0

    empty = infer("-", stdin=subprocess.DEVNULL)
    assert empty.stdout == "-: error: - is empty: copy it again from where it came\n"
    assert empty.returncode == 1


@posix
def test_closed_streams(infer: Infer, films: Path) -> None:
    def close_stdin() -> None:
        os.close(0)

    def close_stderr() -> None:
        os.close(2)

    done = infer("-", preexec_fn=close_stdin)
    assert done.returncode == 2
    assert "standard input is closed" in done.stderr
    for arguments in (["--list"], [films / "a.png", "--format", "csv"]):
        done = infer(*arguments, preexec_fn=lambda: os.close(1))
        assert (done.returncode, done.stdout, no_traceback(done.stderr)) == (0, "", True)
    done = infer(films / "a.png", "--format", "json", preexec_fn=close_stderr)
    assert [r["label"] for r in records(done.stdout)] == ["PNEUMONIA"]
    assert done.returncode == 0


# ------------------------------------------------------------------------------------------------- the answers


def test_text_json_and_csv_say_the_same(infer: Infer, films: Path) -> None:
    names = ["a.png", "B.JPG", "f_red.bmp", "e_text.png"]
    text, lines, table = (infer(*names, "--format", kind, cwd=films) for kind in ("text", "json", "csv"))
    assert {done.returncode for done in (text, lines, table)} == {1}
    answers = records(lines.stdout)

    rows = list(csv.DictReader(io.StringIO(table.stdout)))
    assert list(rows[0]) == [
        "path", "label", "probability", "logit", "threshold", "operating_point", "prevalence", "novelty",
        "in_distribution", "warnings", "model", "file", "contrast", "read_ms", "infer_ms", "region_outlines",
        "region_area", "region_strongest", "error",
    ]  # fmt: skip
    for row, answer in zip(rows, answers, strict=True):
        assert row["path"] == answer["path"]
        assert row["label"] == (answer.get("label") or "")
        assert row["error"] == answer.get("error", "")
        if "error" not in answer:
            assert float(row["probability"]) == answer["probability"]
            assert float(row["threshold"]) == answer["threshold"]
            assert row["in_distribution"] == str(answer["in_distribution"])
            assert row["warnings"] == " | ".join(answer["warnings"])
            assert float(row["read_ms"]) > 0
            assert row["region_outlines"] == row["region_area"] == row["region_strongest"] == ""

    said = text.stdout.splitlines()
    first, second = (f"probability of pneumonia {answer['probability']:>6.1%}" for answer in answers[:2])
    assert (
        said[0] == f"a.png: PNEUMONIA  {first}  (at a prevalence of 75.0%, threshold 50.0%, operating point balanced)"
    )
    assert (
        said[1] == f"B.JPG: NORMAL     {second}  (at a prevalence of 75.0%, threshold 50.0%, operating point balanced)"
    )
    assert said[2] == "f_red.bmp: no verdict (the picture is in colour, an X-ray is grey; the picture is almost blank)"
    assert said[3].startswith("e_text.png: error: e_text.png is not an image that can be read here")
    assert text.stderr.count(NOT_A_DIAGNOSIS) == 1
    assert NOT_A_DIAGNOSIS not in text.stdout


def test_options_reach_the_classifier(infer: Infer, films: Path) -> None:
    done = infer(
        films / "f_red.bmp", "--format", "json", "--force-verdict", "--operating-point", "screening",
        "--prevalence", "0.2", "--threads", "1", "--engine", "onnx", "--file", "model.onnx",
    )  # fmt: skip
    (answer,) = records(done.stdout)
    assert answer["label"] == "PNEUMONIA"
    assert answer["in_distribution"] is False
    assert (answer["operating_point"], answer["file"]) == ("screening", "model.onnx")
    assert answer["threshold"] == pytest.approx(1 / 49)  # odds of 0.2 are 1/4; a twelfth of that are 1/48
    assert done.returncode == 0


def test_a_withheld_verdict_is_an_answer(infer: Infer, films: Path) -> None:
    assert infer(films / "f_red.bmp").returncode == 0


def test_heatmaps_are_pictures_and_films_of_one_name_get_one_each(infer: Infer, films: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "maps"
    save(tmp_path / "a-2.png", 100)
    names = [films / "a.png", films / "sub" / "a.png", tmp_path / "a-2.png", films / "e_text.png", films / "f_red.bmp"]
    done = infer(*names, "--heatmap", target)
    assert done.returncode == 1
    assert sorted(path.name for path in target.iterdir()) == ["a-2-2.png", "a-2.png", "a.png", "f_red.png"]
    for path in target.iterdir():
        with Image.open(path) as overlay:
            overlay.load()
            assert overlay.format == "PNG"
            assert min(overlay.size) > 500


def test_regions_are_told_and_drawn(infer: Infer, local_bundle: Path, tmp_path: Path) -> None:
    x = np.arange(400)[np.newaxis].repeat(200, axis=0)
    grey = {
        "ill": np.where(x < 200, 30, 220),
        "spread": np.where(x < 200, 100, 125),
        "well": np.where(x < 200, 20, 160),
    }
    for name, pixels in grey.items():
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / f"{name}.png")
    names = [f"{name}.png" for name in grey]
    text = infer(*names, "--model", local_bundle, cwd=tmp_path)
    ends = [line.split("balanced)")[1] for line in text.stdout.splitlines()]
    assert ends == ["", "; no region stands out", ""]

    ill, spread, well = records(infer(*names, "--model", local_bundle, "--format", "json", cwd=tmp_path).stdout)
    assert [answer["label"] for answer in (ill, spread, well)] == ["PNEUMONIA", "PNEUMONIA", "NORMAL"]
    assert len(ill["region"]["polygons"]) == 1
    assert 0.4 < ill["region"]["area"] < 0.6
    assert (ill["region"]["width"], ill["region"]["height"]) == (400, 200)
    for answer in (spread, well):
        assert (answer["region"]["polygons"], answer["region"]["area"]) == ([], 0)
        assert 0 < answer["region"]["strongest"] < 1

    asked = infer(*names, "--model", local_bundle, "--regions", "all", "--format", "json", cwd=tmp_path)
    assert [len(answer["region"]["polygons"]) for answer in records(asked.stdout)] == [1, 0, 1]

    table = infer(*names, "--model", local_bundle, "--format", "csv", cwd=tmp_path).stdout
    for row, answer in zip(csv.DictReader(io.StringIO(table)), (ill, spread, well), strict=True):
        assert int(row["region_outlines"]) == len(answer["region"]["polygons"])
        assert float(row["region_area"]) == answer["region"]["area"]
        assert float(row["region_strongest"]) == answer["region"]["strongest"]

    for folder, more in (("lines", []), ("colours", ["--glow"])):
        done = infer(*names, "--model", local_bundle, "--heatmap", tmp_path / folder, *more, cwd=tmp_path)
        assert done.returncode == 0
    sheets = {}
    for path in (*(tmp_path / "lines").iterdir(), *(tmp_path / "colours").iterdir()):
        with Image.open(path) as sheet:
            sheets[f"{path.parent.name}/{path.stem}"] = np.asarray(sheet)
    assert set(sheets) == {f"{folder}/{name}" for folder in ("lines", "colours") for name in grey}
    amber = {name: bool((sheets[f"lines/{name}"] == (255, 176, 0)).all(axis=-1).any()) for name in grey}
    assert amber == {"ill": True, "spread": False, "well": False}
    # Colours need a legend, a line does not.
    assert sheets["colours/ill"].shape[1] == sheets["lines/ill"].shape[1] + 116


def test_glow_needs_a_place_to_draw(infer: Infer, films: Path) -> None:
    done = infer(films / "a.png", "--glow")
    assert done.returncode == 2
    assert "--glow colours the overlays: name a folder for them with --heatmap" in done.stderr


def test_every_film_gets_an_overlay_name_of_its_own_that_a_file_can_have() -> None:
    taken: dict[str, int] = {}
    names = ["a.png", "b/a.jpg", "A.png", "a-2.png", "a.tif", "-", "c/" + "x" * 251 + ".png", "d/" + "ü" * 125 + ".png"]
    given = [_overlay_name(name, taken) for name in names]
    assert given[:6] == ["a.png", "a-2.png", "A-3.png", "a-2-2.png", "a-4.png", "stdin.png"]
    assert given[6:] == ["x" * 200 + ".png", "ü" * 100 + ".png"]

    class Counted(dict[str, int]):
        looks = 0

        def __contains__(self, key: object) -> bool:
            self.looks += 1
            return super().__contains__(key)

    counted = Counted()
    many = {_overlay_name(f"{i}/image.png", counted) for i in range(2000)}
    assert len(many) == 2000
    assert counted.looks <= 3 * len(many)  # and does not begin at 1 for each


@pytest.mark.skipif(not Path("/dev/fd").is_dir(), reason="there is no /dev/fd here")
def test_a_film_that_is_gone_before_its_heatmap_does_not_stop_the_others(
    infer: Infer, films: Path, tmp_path: Path
) -> None:
    # A pipe can be read once; the heatmap would need it a second time.
    reading, writing = os.pipe()
    os.write(writing, (films / "a.png").read_bytes())
    os.close(writing)
    done = infer(f"/dev/fd/{reading}", films / "d.webp", "--heatmap", tmp_path, pass_fds=(reading,))
    os.close(reading)
    assert [line.split(": ")[1].split()[0] for line in done.stdout.splitlines()] == ["PNEUMONIA", "NORMAL"]
    assert f"no heatmap of this film: /dev/fd/{reading} is empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["d.png"]
    assert done.returncode == 1


@posix
def test_names_that_are_no_text_are_printed_as_they_are(infer: Infer, films: Path, tmp_path: Path) -> None:
    name = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(name)).write_bytes((films / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    maps = tmp_path / "maps"
    done = infer(os.fsdecode(name), "--heatmap", maps, text=False)
    assert (done.returncode, done.stdout[: len(name)]) == (0, name)
    assert [os.fsencode(path.name) for path in maps.iterdir()] == [b"caf\xe9.png"]
    done = infer(tmp_path, "--format", "csv", text=False)
    assert done.stdout.splitlines()[1].startswith(name + b",PNEUMONIA,")
    done = infer(tmp_path, "--format", "json")
    assert os.fsencode(records(done.stdout)[0]["path"]) == name


def test_a_terminal_of_few_letters_gets_escapes(infer: Infer, films: Path, tmp_path: Path) -> None:
    (tmp_path / "röntgen.png").write_bytes((films / "a.png").read_bytes())
    done = infer(tmp_path, env={"PYTHONIOENCODING": "ascii"})
    assert "r\\xf6ntgen.png: PNEUMONIA" in done.stdout
    assert done.returncode == 0


# ------------------------------------------------------------------------------------------------ exit code 2


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "no image named: give a film, a folder of films, or - for standard input"),
        (["."], "no image named: give a film, a folder of films, or - for standard input"),
        (["a.png", "--model", "none"], "none is not a folder: give the bundle that pneumo-export wrote"),
        (["a.png", "--operating-point", "best"], "has no operating point best: it has balanced, screening"),
        (["a.png", "--prevalence", "2"], "a prevalence of 2 is not between 0 and 1"),
        (["a.png", "--engine", "tflite"], "has no file for the engine tflite: export it with that format"),
        (["a.png", "--file", "../model.onnx"], "has no file ../model.onnx: it has model.onnx"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_start_is_one_sentence(arguments: list[str], sentence: str, infer: Infer, tmp_path: Path) -> None:
    done = infer(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pneumo-infer: ")
    assert sentence in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--format", "xml"],
        ["--threads", "0"],
        ["--prevalence", "many"],
        ["--no-such-option"],
        ["--engine", "x"],
        ["--heatmap", "{file}"],
    ],
    ids=" ".join,
)
def test_usage_errors(arguments: list[str], infer: Infer, films: Path) -> None:
    done = infer(films / "a.png", *(a.format(file=films / "notes.txt") for a in arguments))
    assert done.returncode == 2
    assert done.stdout == ""
    assert arguments[0] in done.stderr
    assert no_traceback(done.stderr)


def test_a_changed_model_is_refused_and_debug_shows_where(infer: Infer, films: Path, write_bundle: WriteBundle) -> None:
    folder = write_bundle()
    data = bytearray((folder / "model.onnx").read_bytes())
    data[100] ^= 1
    (folder / "model.onnx").write_bytes(data)
    for arguments in ([films / "a.png"], ["--list"]):
        done = infer(*arguments, "--model", folder)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith("(its SHA-256 differs): copy the bundle again")
        assert no_traceback(done.stderr)
    done = infer(films / "a.png", "--model", folder, env={"PNEUMO_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "BundleError" in done.stderr


def without_module(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Runs `pneumo-infer` in an interpreter that cannot import `name`."""
    code = f"import sys; sys.modules[{name!r}] = None; from pneumo_edge.cli import main; main()"
    line = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)


def test_a_missing_engine_is_a_sentence(films: Path, write_bundle: WriteBundle) -> None:
    folder = write_bundle({"model.tflite": b"never read"})
    done = without_module("ai_edge_litert", films / "a.png", "--model", folder)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"pneumo-infer: {folder / 'model.tflite'}: a TFLite model needs the package ai-edge-litert: "
        "pip install 'pneumo[tflite]'"
    ]


def test_a_dicom_file_without_pydicom_does_not_stop_the_others(films: Path, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "film.dcm").write_bytes(bytes(128) + b"DICM" + bytes(100))
    done = without_module("pydicom", tmp_path, films / "a.png", "--model", bundle, "--format", "json")
    first, second = records(done.stdout)
    assert "pip install 'pneumo[dicom]'" in first["error"]
    assert second["label"] == "PNEUMONIA"
    assert done.returncode == 1


# --------------------------------------------------------------------------------------- pipes, signals, terminals


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with more films than a pipe holds answers."""
    folder = tmp_path_factory.mktemp("many")
    film = save(folder / "0000.png", 150)
    for i in range(1, 1500):
        os.link(film, folder / f"{i:04}.png")
    return folder


@posix
def test_a_reader_that_goes_away_is_no_error_message(infer_command: Command, many: Path) -> None:
    with subprocess.Popen(
        infer_command(many, "--format", "json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
    assert records(first)[0]["path"] == str(many / "0000.png")
    assert stderr.splitlines() == [NOT_A_DIAGNOSIS]
    assert process.returncode == 1


@posix
def test_ctrl_c_ends_cleanly_with_whole_lines(infer_command: Command, many: Path, ctrl_c: None) -> None:
    with subprocess.Popen(
        infer_command(many, "--format", "json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
        stderr = process.stderr.read()
    answers = records(first + rest)
    assert [r["path"] for r in answers] == [str(many / f"{i:04}.png") for i in range(len(answers))]
    assert len(answers) < 1500
    assert no_traceback(stderr)
    assert process.returncode == 130


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_full_disk_is_a_sentence(infer: Infer, films: Path) -> None:
    for arguments, said in (([films / "a.png"], [NOT_A_DIAGNOSIS]), (["--list"], [])):
        with Path("/dev/full").open("w") as full:
            done = infer(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert done.stderr.splitlines() == [*said, "pneumo-infer: No space left on device"]
        assert done.returncode == 1


@posix
def test_a_terminal_shows_progress_with_the_time_left(infer_command: Command, many: Path) -> None:
    ours, theirs = os.openpty()
    with subprocess.Popen(
        infer_command(many), stdout=subprocess.DEVNULL, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            pass  # what Linux says when the other end is closed
    os.close(ours)
    assert process.returncode == 0
    assert b"judging" in shown
    assert b"/1500" in shown
    assert b"0:00:" in shown


# ----------------------------------------------------------------------------------------- help, version, imports


def test_nothing_is_left_in_the_home_of_the_user(infer: Infer, films: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    done = infer(films / "a.png", env={"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache")})
    assert done.returncode == 0
    assert not list(home.rglob("*"))


def test_list_shows_bundle_files_engines_and_hashes(infer: Infer, bundle: Path) -> None:
    done = infer("--list")
    description = json.loads((bundle / "model.json").read_text())
    for word in (
        "tiny: none, gap head, 32 x 32",
        str(bundle),
        "balanced (default): pneumonia from 50.0%",
        "screening: pneumonia from 20.0%",
        "sensitivity 90.0%",
        "model.onnx: fp32",
        "onnx 1.",
        description["files"]["model.onnx"]["sha256"],
    ):
        assert word in done.stdout
    assert (done.returncode, done.stderr) == (0, "")


def test_list_says_whom_the_model_knows(infer: Infer, bundle: Path, write_bundle: WriteBundle) -> None:
    assert "this bundle does not say which ages and views" in infer("--list").stdout
    clinic = Site("clinic", "", "", {"train/NORMAL": 90, "train/PNEUMONIA": 9, "test/NORMAL": 7}, 80,
                  Ages(1, 3, 5.4, 50), {"PA": 9, "AP": 2}, {})  # fmt: skip
    other = Site("other", "", "", {"train/NORMAL": 1}, 1, None, {}, {})
    known = write_bundle(provenance=Provenance("none", {}, "none", "2025-01-01", {}, (clinic, other)))
    lines = infer("--list", "--model", known).stdout.splitlines()
    assert "  learned from clinic: 99 films, 80 patients, 1 to 5 years old, views AP, PA" in lines
    assert "  learned from other: 1 films, 1 patients, ages unknown" in lines


def test_version(infer: Infer) -> None:
    done = infer("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"pneumo {__version__}\n", "")


def test_every_option_is_documented(infer: Infer) -> None:
    done = infer("--help", env={"COLUMNS": "200"})
    assert done.returncode == 0
    for parameter in typer.main.get_command(app).params:
        assert getattr(parameter, "help", None), f"{parameter.name} has no help"
        for option in parameter.opts if parameter.name != "paths" else ["PATH..."]:
            assert option in done.stdout
    assert NOT_A_DIAGNOSIS in done.stdout


def test_help_and_version_load_neither_numpy_nor_pillow() -> None:
    code = """
import sys
from pneumo_edge.cli import app
from pneumo_edge.command_line import run
try:
    run(app, "pneumo-infer")
finally:
    print(sorted({"numpy", "PIL", "onnxruntime"} & set(sys.modules)))
"""
    for option in ("--version", "--help"):
        line = [sys.executable, "-W", "error", "-c", code, option]
        done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
        assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "[]", "")


@pytest.mark.parametrize(
    ("cause", "code", "said"), [("KeyboardInterrupt()", 130, "it: interrupted\n"), ("None", 1, "")]
)
def test_ctrl_c_while_c_code_is_imported_is_an_interruption(cause: str, code: int, said: str) -> None:
    script = f"""
import typer
from pneumo_edge.command_line import run
app = typer.Typer(pretty_exceptions_enable=False)
@app.command()
def main() -> None:
    raise ImportError("initialization failed") from {cause}
run(app, "it")
"""
    line = [sys.executable, "-W", "error", "-c", script]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == code
    assert done.stderr == said if said else "ImportError: initialization failed" in done.stderr


def test_one_film_loads_no_more_than_it_needs(films: Path, bundle: Path) -> None:
    """Each of these costs a hundredth of a second or more, of a third of a second in all."""
    code = """
import sys
from pneumo_edge.cli import app
from pneumo_edge.command_line import run
try:
    run(app, "pneumo-infer")
finally:
    late = {"rich", "concurrent.futures.thread", "PIL.TiffImagePlugin", "PIL.PngImagePlugin", "pydicom", "csv"}
    print(sorted(late & set(sys.modules)))
"""
    line = [sys.executable, "-W", "error", "-c", code, str(films / "B.JPG"), "--model", str(bundle)]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "[]")


def test_inference_loads_nothing_of_training(films: Path, bundle: Path) -> None:
    code = """
import sys
import pneumo_edge
late = {"onnxruntime", "ai_edge_litert", "typer", "rich", "pydicom"} & set(sys.modules)
assert not late, f"import pneumo_edge loads {late}"
with pneumo_edge.Classifier.load(sys.argv[1]) as classifier:
    print(classifier.predict(sys.argv[2]).label)
heavy = {"tensorflow", "keras", "sklearn", "scipy", "matplotlib", "pandas", "onnx", "typer", "rich", "pydicom"}
print(sorted(heavy & set(sys.modules)))
"""
    line = [sys.executable, "-W", "error", "-c", code, str(bundle), str(films / "a.png")]
    done = subprocess.run(line, capture_output=True, text=True, timeout=600, check=False)
    assert (done.returncode, done.stdout.splitlines(), done.stderr) == (0, ["PNEUMONIA", "[]"], "")


def test_what_libraries_write_meanwhile_is_not_shown() -> None:
    code = """
import os, subprocess
from pneumo_edge.command_line import libraries_quiet
with libraries_quiet():
    os.write(2, b"how it computes\\n")
subprocess.run(["sh", "-c", "echo after it >&2"], check=True)
"""
    said = {}
    for debug in ("", "1"):
        environment = os.environ | {"PNEUMO_DEBUG": debug}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        said[debug] = done.stderr.splitlines()
    assert said == {"": ["after it"], "1": ["how it computes", "after it"]}
