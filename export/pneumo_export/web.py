"""pneumo-web: a bundle as a folder of static files, a page that judges films in the browser itself.

The page is the one of pneumo-serve; of its modules `api.js` alone is another, from `web_page/`, with what judges.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from pneumo_edge import __version__, levels, overlay, plausibility, preprocess
from pneumo_edge.atomic import replacing_folder
from pneumo_edge.bundle import DEFAULT_BUNDLE, DESCRIPTION, Bundle, read_bundle
from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_version, run, say
from pneumo_edge.dicom.tags import MAX_PIXELS
from pneumo_edge.errors import BundleError, UsageError
from pneumo_edge.words import CATALOGUE
from pneumo_export.npm import PACKAGES, fetch

_SHARED = Path(preprocess.__file__).parent / "serve" / "page"
_OWN = Path(__file__).parent / "web_page"
_PAGE = "index.html"
_WORKER = "service-worker.js"

_POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; manifest-src 'self'; form-action 'none'; base-uri 'none'"
)
"""WebAssembly and a worker are more than the page of pneumo-serve needs; that nothing but this folder is asked is what
proves that no film is sent."""

_HEAD = '<meta charset="utf-8">\n'

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def write_web(bundle: Bundle, output: Path) -> dict[str, bytes]:
    """Writes the folder, whole or not at all; one that was made here before is replaced.

    Args:
        bundle: With a file for LiteRT; its int8 file is taken if it has one.
        output: The folder.

    Returns:
        Path -> bytes of all that it holds.

    Raises:
        BundleError: There is no such file, or it was changed.
        PneumoError: The browser's runtime cannot be fetched.
        UsageError: `output` holds what is not ours.
    """
    check_output(output)
    files = _files(bundle)
    with replacing_folder(output) as folder:
        for path, data in files.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data)
    return files


def _files(bundle: Bundle) -> dict[str, bytes]:
    models = bundle.files_of_engine("tflite")
    if not models:
        raise BundleError(f"{bundle.folder} has no TFLite file, which the browser needs: export it with that format")
    model = models[0]
    files = own_modules()
    files[CATALOGUE.name] = CATALOGUE.read_bytes()
    files["legend.png"] = _legend()
    files["constants.json"] = json.dumps(constants(model)).encode()
    files[DESCRIPTION] = (bundle.folder / DESCRIPTION).read_bytes()
    files[model] = bundle.read_file(model)
    for package in PACKAGES:
        files |= fetch(package)
    version = _hash(json.dumps({name: _hash(data) for name, data in sorted(files.items())}).encode())[:16]
    page, worker = files.pop(_PAGE), files.pop(_WORKER)
    # A folder for each version: whatever answers, a page has all its files from the version that its index.html names.
    files = {f"{version}/{name}": data for name, data in files.items()}
    # The last one, as the service worker has to take it.
    files[_PAGE] = _page(page.decode(), version, files).encode()
    known = {path: _hash(data) for path, data in files.items()}
    lines = {"FILES": known, "VERSION": version, "POLICY": _POLICY}
    head = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in lines.items())
    return files | {_WORKER: head.encode() + worker}


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def own_modules() -> dict[str, bytes]:
    """Returns name -> bytes of all that is of pneumo itself, as it stands in the packages."""
    # Those of web_page/ come last: its api.js takes the place of the other.
    return {file.name: file.read_bytes() for place in (_SHARED, _OWN) for file in sorted(place.iterdir())}


def _page(page: str, version: str, files: Collection[str]) -> str:
    """Returns the page of pneumo-serve, which says of itself what a server says in headers, and names its version."""
    told = f'{_HEAD}  <meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
    told += '  <meta name="referrer" content="no-referrer">\n  <link rel="manifest" href="manifest.webmanifest">\n'
    # All at once: without this each is found only when the one before it has come.
    told += "".join(f'  <link rel="modulepreload" href="{name}">\n' for name in _modules(files))
    changed = page.replace('<html lang="en">', '<html lang="en" data-judge="browser">', 1).replace(_HEAD, told, 1)
    if 'data-judge="browser"' not in changed or "manifest" not in changed:
        raise AssertionError("index.html begins otherwise than it did")
    return re.sub(
        r'((?:href|src)=")([\w.-]+)(?=")',
        lambda at: f"{at[1]}{version}/{at[2]}" if f"{version}/{at[2]}" in files else at[0],
        changed,
    )


def _modules(files: Collection[str]) -> list[str]:
    """Returns the paths of all that is imported; LiteRT takes one of its own scripts by itself."""
    return [path for path in files if path.endswith(".js") and "_wasm_" not in path]


def constants(model: str) -> dict[str, Any]:
    """Returns what the runtime's modules state and the page needs: a number stands in one place."""
    return {
        "version": __version__,
        "file": model,
        "limits": {
            "max_bytes": preprocess.MAX_BYTES,
            "max_pixels": MAX_PIXELS,
            "max_scanned_pixels": preprocess.MAX_SCANNED_PIXELS,
            "film_range": {"tail": levels.TAIL, "reach": levels.REACH, "gap": levels.GAP},
            "max_chroma": plausibility.MAX_CHROMA,
            "min_contrast": plausibility.MIN_CONTRAST,
            "min_side": plausibility.MIN_SIDE,
            "max_aspect": plausibility.MAX_ASPECT,
        },
        "look": {
            "colours": overlay.COLOURS.tolist(),
            "opacity": overlay.OPACITY.tolist(),
            "full_evidence": overlay.FULL_EVIDENCE,
            "line_from": overlay.LINE_FROM,
        },
    }


def _legend() -> bytes:
    file = io.BytesIO()
    overlay.legend_layer().save(file, format="PNG")
    return file.getvalue()


def check_output(output: Path) -> None:
    """Raises `UsageError` for a folder that holds what is not ours."""
    if not output.exists():
        return
    if not output.is_dir():
        raise UsageError(f"{output} is a file: give a folder")
    there = {path.relative_to(output).as_posix() for path in output.rglob("*") if not path.is_dir()}
    worker = output / _WORKER
    ours = worker.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if worker.is_file() else ""
    known = (
        set(json.loads(ours.removeprefix("const FILES = ").rstrip(";")))
        if ours.startswith("const FILES = {")
        else set()
    )
    if strange := sorted(there - {*known, _WORKER}):
        raise UsageError(f"{output} holds {strange[0]}, which pneumo-web has not put there: give an empty folder")


@app.command(epilog=NOT_A_DIAGNOSIS)
def web(
    output: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write; one made here before is replaced.")],
    model: Annotated[
        Path | None,
        typer.Option(metavar="BUNDLE", help="Folder that pneumo-export wrote; by default pneumo's own model."),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Writes a page that judges films in the browser: static files for any web server. No film leaves the browser."""
    build(read_bundle(model or DEFAULT_BUNDLE), output)


def build(bundle: Bundle, output: Path) -> None:
    """Writes the folder, and tells at the terminal where it is, how large, and how to look at it."""
    files = write_web(bundle, output)
    whole, packed = sum(map(len, files.values())), sum(len(gzip.compress(data, 6)) for data in files.values())
    say(f"{len(files)} files, {whole / 1e6:.1f} MB; {packed / 1e6:.1f} MB over the wire from a server that compresses")
    say(f"to look at it: python -m http.server --bind 127.0.0.1 --directory {output}, then http://localhost:8000")
    say(NOT_A_DIAGNOSIS)
    print(output)


def main() -> NoReturn:
    """Entry point of `pneumo-web`."""
    run(app, "pneumo-web")


if __name__ == "__main__":
    main()
