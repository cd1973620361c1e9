"""Files of packages from the npm registry, by version and hash: what `pneumo-web` puts beside the page."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from pneumo_edge.atomic import replacing_file
from pneumo_edge.errors import PassingError, PneumoError, UsageError

_REGISTRY = "https://registry.npmjs.org"
_PATIENCE = 60.0
"""Seconds without a byte."""
_MAX_BYTES = 1 << 28


@dataclass(frozen=True)
class File:
    """What is taken of a package."""

    path: str
    """In the package."""
    name: str
    """Beside the page."""
    sha256: str
    """As it lies in the package."""
    commonjs: bool = False
    """Whether it is made a module that a browser can import: what it exports becomes the default."""
    renamed: tuple[str, str] | None = None
    """What it imports, and by what name it finds that here."""


@dataclass(frozen=True)
class Package:
    """One version of a package."""

    name: str
    version: str
    integrity: str
    """SHA-512 of the tarball in base64, as `npm view NAME@VERSION dist.integrity` has it."""
    files: tuple[File, ...]


PACKAGES = (
    # Apache-2.0. With relaxed SIMD and without, and with threads. Chosen over ONNX Runtime Web 1.30.0 by one trial with
    # one thread on a busy machine, whose figures no file keeps: it took 22 ms for the int8 network, the other 102.
    Package(
        "@litertjs/core",
        "2.5.3",
        "PlGmbMOq9WitX7FO0jhbdJw9GthatsyuCQXjTt/wJZo0FLaw48q4tz8IwqgqCIkviYGr9OFDL1kCnN4nzWoyJQ==",
        (
            File(
                "dist/index.js",
                "litert.js",
                "e7daccc3a31eef890848a737ccb863ded5f046a6b40c3fdc0556495adeb5d9b3",
                # A browser knows no packages.
                renamed=("@litertjs/wasm-utils", "./litert-utils.js"),
            ),
            File(
                "wasm/litert_wasm_internal.js",
                "litert_wasm_internal.js",
                "68efb69f770e3f76aff36a377de629ca496c131b86ac0f0f4b592a1543a898eb",
            ),
            File(
                "wasm/litert_wasm_internal.wasm",
                "litert_wasm_internal.wasm",
                "7280cf4471774867e385e6c3cd53e2b45e2975b80fea338fff4ef359b0865614",
            ),
            File(
                "wasm/litert_wasm_compat_internal.js",
                "litert_wasm_compat_internal.js",
                "4d8f894b7883654fd6e8439730aa41e79ceaab7d19184fc4f1f0b0f1a2a2c8a5",
            ),
            File(
                "wasm/litert_wasm_compat_internal.wasm",
                "litert_wasm_compat_internal.wasm",
                "5255c8ad06eabdbd2522cdebf6b22fc10faf74625c23a49b9e072570cd1fa41c",
            ),
            File(
                "wasm/litert_wasm_threaded_internal.js",
                "litert_wasm_threaded_internal.js",
                "92fe7a720c6deedaa1194c011c79a005ea4f6fc98f533b661cf7900760ab4849",
            ),
            File(
                "wasm/litert_wasm_threaded_internal.wasm",
                "litert_wasm_threaded_internal.wasm",
                "b5e54eca10f043497edf9a02186332707cae260c550d7ea22b2cae55669596cf",
            ),
        ),
    ),
    Package(
        "@litertjs/wasm-utils",
        "2.5.3",
        "4fJiw6tBQnIs+0jH/OQ16nYOiSl8/+zZnn5h2ul8aTKHi05sVqZW580Tmk78pC2kT39A9OYBVdFawteZ/sI1kQ==",
        (
            File(
                "dist/index.js",
                "litert-utils.js",
                "e0e20bc28ab001ac732cf40d15b6eebd24fb0deaeb95eeba5100f51eebf015f2",
            ),
        ),
    ),
    # MIT, as the next one.
    Package(
        "dicom-parser",
        "1.8.21",
        "lYCweHQDsC8UFpXErPlg86Px2A8bay0HiUY+wzoG3xv5GzgqVHU3lziwSc/Gzn7VV7y2KeP072SzCviuOoU02w==",
        (
            File(
                "dist/dicomParser.min.js",
                "dicom-parser.js",
                "2b990e92de021a9c0d58f7dca693c95fa76be6398648b68441df9423de284a2b",
                commonjs=True,
            ),
        ),
    ),
    Package(
        "jpeg-lossless-decoder-js",
        "2.1.2",
        "fYf/plymnuKwVw+s8gJ8O/BPw8y8OLaN11MBvEcT05kuy3m45o7BEC4J0JbxMNUYyO+MdK/I/jq0q1gkVYZm2Q==",
        (
            File(
                "release/lossless-min.js",
                "jpeg-lossless.js",
                "7a50162e3ce1f1e45c6d45161918281f34079a223cc7329518a2aa89390e9658",
            ),
        ),
    ),
)
"""All that comes from npm. Licences stand in `web_page/NOTICE.txt`."""


def fetch(package: Package) -> dict[str, bytes]:
    """Returns name -> bytes of the files; they are kept in the user's cache, and looked for there first.

    The registry is the public one, or what the environment variable `npm_config_registry` names.

    Raises:
        PassingError: The registry cannot be reached.
        PneumoError: What it gives has another hash.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pneumo"
    kept = {file: folder / f"{file.sha256[:16]}-{file.name}" for file in package.files}
    found = {file: path.read_bytes() if path.is_file() else b"" for file, path in kept.items()}
    if any(hashlib.sha256(data).hexdigest() != file.sha256 for file, data in found.items()):
        found = _unpacked(_download(package), package)
        for file, data in found.items():
            with replacing_file(kept[file]) as temporary:
                temporary.write_bytes(data)
    return {file.name: _as_module(data, file) for file, data in found.items()}


def _as_module(data: bytes, file: File) -> bytes:
    if file.renamed is not None:
        theirs, ours = (f'from "{name}"'.encode() for name in file.renamed)
        return data.replace(theirs, ours)
    if file.commonjs:
        before = b"const module = { exports: {} };\nconst { exports } = module;\nconst require = () => undefined;\n"
        return before + data + b"\nexport default module.exports;\n"
    return data


def _unpacked(tarball: bytes, package: Package) -> dict[File, bytes]:
    wanted = {f"package/{file.path}": file for file in package.files}
    found = {}
    with tarfile.open(fileobj=io.BytesIO(tarball), mode="r:gz") as archive:
        # In the order in which they lie there: another would unpack it all once more.
        for member in archive:
            if member.name in wanted and (opened := archive.extractfile(member)) is not None:
                found[wanted[member.name]] = opened.read()
    return found


def _download(package: Package) -> bytes:
    """Returns the tarball, whose hash has been checked."""
    registry = os.environ.get("npm_config_registry") or _REGISTRY  # noqa: SIM112 - npm's own
    url = f"{registry.rstrip('/')}/{package.name}/-/{package.name.rpartition('/')[2]}-{package.version}.tgz"
    if not url.startswith(("https://", "http://")):
        raise UsageError(f"npm_config_registry is {registry}: give an address that begins with https://")
    try:
        with urllib.request.urlopen(url, timeout=_PATIENCE) as answer:  # noqa: S310 - checked above
            data: bytes = answer.read(_MAX_BYTES)
    except OSError as error:
        why = getattr(error, "reason", None) or error
        raise PassingError(
            f"{url} cannot be fetched ({why}): try again, or name another registry (npm_config_registry)"
        ) from error
    if base64.b64encode(hashlib.sha512(data).digest()).decode() != package.integrity:
        raise PneumoError(f"{url} has another SHA-512 than pneumo knows, so it was changed: name another registry")
    return data
