"""What the tests of pneumo-web share."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from chromium import launched
from pneumo_export.web import constants, own_modules

Read = Callable[..., dict[str, Any]]

SIZE = 160

SCRIPT = """async ([name, size, limits, all]) => {
  const [{ readFilm }, { objections }] = await Promise.all(["/read.js", "/verdict.js"].map((each) => import(each)));
  const packed = (values) => {
    let text = "";
    const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
    for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
    return btoa(text);
  };
  const data = new Uint8Array(await (await fetch("/film")).arrayBuffer());
  try {
    const read = await readFilm(data, name, size, limits);
    const { values } = read.film;
    return {
      ...read,
      pixels: packed(read.pixels),
      objections: objections(read, limits),
      film: { ...read.film, values: all ? packed(values) : null, bits: 8 * values.BYTES_PER_ELEMENT },
    };
  } catch (error) {
    return { refused: error.message, whole: error.whole };
  }
}"""


@pytest.fixture(scope="module")
def read(runtime: dict[str, bytes]) -> Iterator[Read]:
    """Reads a file as the page does."""
    files = own_modules() | runtime
    limits = constants("model.int8.onnx")["limits"]
    with launched() as browser:
        page = browser.new_page()
        page.route(
            "http://localhost/**",
            lambda route: route.fulfill(
                body=files.get(route.request.url.rpartition("/")[2], b""),
                content_type="text/javascript" if route.request.url.endswith(".js") else "text/html",
            ),
        )
        page.goto("http://localhost/")

        def run(data: bytes, *, name: str = "film", whole: bool = False) -> dict[str, Any]:
            files["film"] = data
            found: dict[str, Any] = page.evaluate(SCRIPT, [name, SIZE, limits, whole])
            if "pixels" in found:
                pixels = np.frombuffer(base64.b64decode(found["pixels"]), np.uint8)
                found["pixels"] = pixels.reshape(SIZE, SIZE, 1)
                film = found["film"]
            if whole and "pixels" in found:
                values = np.frombuffer(base64.b64decode(film["values"]), f"<u{film['bits'] // 8}")
                film["values"] = values.reshape(film["height"], film["width"])
            return found

        yield run
