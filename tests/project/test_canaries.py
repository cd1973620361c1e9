"""What pneumo needs of other libraries and they do not promise, each asked for by itself. These tests run first: where
one is red, a new version of a library is the reason of much that is red after it, and the text of the failure says
which lines of pneumo have to follow. Until they do, set an upper bound in pyproject.toml."""

from __future__ import annotations

import asyncio
import inspect
import io
import queue
import re
import ssl
import threading
from collections.abc import AsyncGenerator
from socketserver import TCPServer
from typing import Any

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin, PngImagePlugin

pytestmark = [
    pytest.mark.canary,
    # pynetdicom leaves a socket that was never connected to the garbage collector.
    pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"),
    pytest.mark.usefixtures("collected"),
]


def test_fsspec_takes_a_url_apart() -> None:
    """pneumo_edge/archive/places.py opens one file system by its URL as `fsspec.url_to_fs` does, but without `::`."""
    fsspec = pytest.importorskip("fsspec", reason="needs the extra archive")
    kind = fsspec.get_filesystem_class("memory")
    why = "fsspec: pneumo_edge/archive/places.py, open_url"
    assert kind._get_kwargs_from_urls("memory://films/a.png") == {}, why
    assert kind._strip_protocol("memory://films/a.png") == "/films/a.png", why
    ftp = fsspec.get_filesystem_class("ftp")
    assert ftp._get_kwargs_from_urls("ftp://me@clinic:2121/films")["host"] == "clinic", why
    assert ftp._strip_protocol("ftp://me@clinic:2121/films") == "/films", why


def test_fsspec_translates_a_pattern() -> None:
    """pneumo_edge/archive/listing.py, _glob."""
    pytest.importorskip("fsspec", reason="needs the extra archive")
    from fsspec.utils import glob_translate

    pattern = re.compile(glob_translate("a/**/*.png"))
    assert pattern.match("a/b/c/film.png"), "fsspec: pneumo_edge/archive/listing.py, _glob"
    assert not pattern.match("a/b/film.jpeg"), "fsspec: pneumo_edge/archive/listing.py, _glob"


def test_uvicorn_knows_what_a_connection_is_doing() -> None:
    """pneumo_edge/serve/connection.py closes connections that ask for nothing."""
    pytest.importorskip("uvicorn", reason="needs the extra serve")
    from uvicorn import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import ServerState

    why = "uvicorn: pneumo_edge/serve/connection.py, Connection"
    seen: list[Any] = []
    made: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(made[0].cycle.response_complete)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    class Transport(asyncio.Transport):
        def write(self, data: Any) -> None:
            seen.append(bytes(data))

        def is_closing(self) -> bool:
            return False

        def close(self) -> None:
            seen.append("closed")

        def set_protocol(self, protocol: Any) -> None: ...

    async def talk() -> None:
        config = Config(app, http=H11Protocol, lifespan="off", log_config=None)
        config.load()
        protocol: Any = H11Protocol(config=config, server_state=ServerState(), app_state={})
        made.append(protocol)
        protocol.connection_made(Transport())
        assert protocol.loop is asyncio.get_running_loop(), why
        assert isinstance(protocol.transport, Transport), why
        assert made[0].cycle is None, why
        protocol.data_received(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while not seen or not isinstance(seen[-1], bytes) or not protocol.cycle.response_complete:
            await asyncio.sleep(0)
        protocol.connection_lost(None)

    asyncio.run(asyncio.wait_for(talk(), 60))
    assert seen[0] is False, why
    assert seen[1].startswith(b"HTTP/1.1 204"), why


def test_starlette_lets_a_form_stay_in_memory_and_tells_its_end() -> None:
    """pneumo_edge/serve/intake.py writes no film into a temporary file, and refuses a form that breaks off."""
    pytest.importorskip("starlette", reason="needs the extra serve")
    from starlette.datastructures import Headers
    from starlette.formparsers import MultiPartParser

    class Form(MultiPartParser):
        spool_max_size = 1 << 40
        ended = False

        def on_end(self) -> None:
            self.ended = True

    why = "starlette: pneumo_edge/serve/intake.py, _Form"
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    for end, ended in ((b"\r\n--b--\r\n", True), (b"", False)):

        async def parts(end: bytes = end) -> AsyncGenerator[bytes, None]:
            yield head + bytes(2_000_000) + end

        form = Form(Headers({"content-type": "multipart/form-data; boundary=b"}), parts())
        told: Any = asyncio.run(form.parse())
        assert form.ended is ended, why
        if ended:
            film = told["file"].file
            assert (film.tell(), film._rolled) == (0, False), why
            film.close()
        else:
            for file in form._files_to_close_on_error:
                file.close()


def test_pynetdicom_lets_a_server_choose_its_callers() -> None:
    """pneumo_edge/serve/node.py counts connections before pynetdicom starts threads for them."""
    pytest.importorskip("pynetdicom", reason="needs the extra serve")
    from pynetdicom import AE
    from pynetdicom.transport import ThreadedAssociationServer

    why = "pynetdicom: pneumo_edge/serve/node.py, _Server"
    assert issubclass(ThreadedAssociationServer, TCPServer), why
    turned_away: list[Any] = []

    class Server(ThreadedAssociationServer):
        def verify_request(self, _request: Any, client_address: Any) -> bool:
            turned_away.append((client_address, self.active_associations))
            return False

    entity = AE("PNEUMO")
    entity.add_supported_context("1.2.840.10008.1.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with entity.make_server(("127.0.0.1", 0), server_class=Server, ssl_context=context) as server:
        assert server.ssl_context is context, why
    with entity.make_server(("127.0.0.1", 0), server_class=Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        caller = AE("MODALITY")
        caller.add_requested_context("1.2.840.10008.1.1")
        association = caller.associate("127.0.0.1", server.server_address[1])
        TCPServer.shutdown(server)
        thread.join()
    assert not association.is_established, why
    assert [each for _, each in turned_away] == [[]], why


def test_pynetdicom_shows_the_inside_of_an_association() -> None:
    """pneumo_edge/serve/node.py bounds what it reads and rejects calls, pneumo_edge/serve/peers.py cuts one that
    hangs."""
    pytest.importorskip("pynetdicom", reason="needs the extra serve")
    from pynetdicom import AE, evt

    why = "pynetdicom: pneumo_edge/serve/node.py (_opened, _requested) and pneumo_edge/serve/peers.py (DicomLink)"
    heard: list[Any] = []

    def opened(event: Any) -> None:
        connection = event.assoc.dul.socket
        heard.append((connection.socket.gettimeout(), callable(connection.recv)))

    def requested(event: Any) -> None:
        request = event.assoc.requestor
        heard.append((request.address, request.primitive.calling_ae_title))
        event.assoc.acse.send_reject(2, 3, 2)
        evt.trigger(event.assoc, evt.EVT_REJECTED, {})
        event.assoc.kill()

    taking, calling = AE("PNEUMO"), AE("MODALITY")
    for entity in (taking, calling):
        entity.add_supported_context("1.2.840.10008.1.1")
        entity.add_requested_context("1.2.840.10008.1.1")
    handlers: Any = [(evt.EVT_CONN_OPEN, opened), (evt.EVT_REQUESTED, requested)]
    busy: Any = taking.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers)
    rejected: Any = calling.associate("127.0.0.1", busy.server_address[1])
    busy.shutdown()
    assert (rejected.is_rejected, rejected.acceptor.primitive.diagnostic) == (True, 2), why
    assert heard[0][1], why
    assert heard[1][0] == "127.0.0.1", why
    assert heard[1][1].strip() == "MODALITY", why

    there: Any = taking.start_server(("127.0.0.1", 0), block=False)
    association = calling.associate("127.0.0.1", there.server_address[1])
    assert association.is_established, why
    assert association._sent_abort is False, why
    assert isinstance(association.dimse.msg_queue, queue.Queue), why
    assert isinstance(association.dul.to_user_queue, queue.Queue), why
    association.abort(block=False)
    association.join(60)
    assert association._sent_abort is True, why
    association.dul.socket.close()
    there.shutdown()


def test_pynetdicom_measures_by_a_clock_that_can_be_replaced() -> None:
    """pneumo_edge/serve/steady.py gives its timers one that nobody sets."""
    timer = pytest.importorskip("pynetdicom.timer", reason="needs the extra serve")

    class Stopped:
        @staticmethod
        def time() -> float:
            return 100.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timer, "time", Stopped)
        running = timer.Timer(60)
        running.start()
        assert running.remaining == 60.0, "pynetdicom: pneumo_edge/serve/steady.py"


def test_pydicom_says_how_a_file_was_written() -> None:
    """pneumo_edge/dicom reads values before they are parsed, and the byte order."""
    pydicom = pytest.importorskip("pydicom", reason="needs the extra dicom")
    from pydicom.charset import python_encoding
    from pydicom.uid import ExplicitVRBigEndian

    film = pydicom.Dataset()
    film.SOPClassUID, film.SOPInstanceUID, film.Rows = "1.2.3", "1.2.4", 5
    film.file_meta = pydicom.dataset.FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    file = io.BytesIO()
    film.save_as(file, enforce_file_format=True)
    file.seek(0)
    read = pydicom.dcmread(file)
    why = "pydicom: pneumo_edge/dicom and pneumo_edge/serve/answers.py"
    assert read.original_encoding == (False, False), why
    raw = read.get_item("Rows")
    assert (raw.value, raw.length) == (b"\0\5", 2), why
    assert python_encoding["ISO_IR 100"], why


def test_pillow_can_be_told_the_order_of_bytes() -> None:
    """pneumo_edge/deep.py reads colours of 16 bits by their upper and their lower halves."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(file, format="PNG")
    picture = PngImagePlugin.PngImageFile(io.BytesIO(file.getvalue()))
    why = "Pillow: pneumo_edge/deep.py, _png"
    assert hasattr(picture.tile[0], "_replace"), why
    assert ";16B" in str(picture.tile[0].args), why
    assert inspect.isclass(JpegImagePlugin.JpegImageFile), "Pillow: pneumo_edge/dicom/decode.py"
