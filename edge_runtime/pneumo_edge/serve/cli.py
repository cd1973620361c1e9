"""pneumo-serve: a page and an HTTP interface on this machine, until it is stopped."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_version, quiet_libraries, run, say
from pneumo_edge.errors import MissingExtraError, UsageError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

_SHORTEST_TOKEN = 16
"""Characters. So many hexadecimal digits withstand a thousand guesses a second for 300 million years."""

_CONNECTIONS = 512
"""Open at one moment. uvicorn answers 503 to more."""


@app.command(epilog=NOT_A_DIAGNOSIS)
def serve(
    model: Annotated[
        Path | None, typer.Option(help="Bundle that pneumo-export wrote; the one that comes with pneumo by default.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every one. Any but this machine needs --token-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page and the HTTP interface; 0 for any.")] = 8000,
    spool: Annotated[
        Path | None,
        typer.Option(
            file_okay=False, help="Folder that holds films and answers; ~/.local/state/pneumo/spool by default."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="File whose one line, of 16 characters or more, every request must bear."),
    ] = None,
    _version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Answers to films that come from a page in a browser or over HTTP."""
    try:
        import uvicorn

        from pneumo_edge.serve.gate import is_loopback
        from pneumo_edge.serve.web import make_app
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "pneumo-serve") from error
    from pneumo_edge.classifier import Classifier
    from pneumo_edge.serve.journal import Journal
    from pneumo_edge.serve.spool import Spool

    token = None if token_file is None else _read_token(token_file)
    if token is None and not is_loopback(host):
        raise UsageError(f"{host} can be reached from other machines: give --token-file, or leave out --host")
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    classifier = Classifier.load(model)
    listening = _listen(host, port)
    kept = Spool(spool or _state_folder() / "spool")
    journal = Journal(kept.journal)
    server = uvicorn.Server(
        uvicorn.Config(
            make_app(classifier, journal, kept, token=token),
            loop="asyncio",
            http="h11",
            ws="none",
            lifespan="on",
            log_config=None,
            log_level=logging.WARNING,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=_CONNECTIONS,
            timeout_graceful_shutdown=10,
        )
    )
    # uvicorn stops in good order at these and then raises them once more, at which all the rest would be dropped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    say(NOT_A_DIAGNOSIS)
    say(f"page and HTTP: {_address(listening)}")
    try:
        server.run(sockets=[listening])
    finally:
        journal.close()
        kept.close()


def _read_token(path: Path) -> str:
    """Reads the token.

    Raises:
        UsageError: The file cannot be read, others can read it, or what it holds is no token.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): give a file that holds the token") from None
    if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(f"everybody on this machine can read or change {path}: chmod 600 {path}")
    token = text.decode("ascii", "replace").strip()
    if not token:
        raise UsageError(f"{path} is empty: put a token into it, such as what `openssl rand -hex 16` prints")
    if len(token) < _SHORTEST_TOKEN:
        raise UsageError(f"the token in {path} is short: give {_SHORTEST_TOKEN} characters or more, chosen at random")
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise UsageError(f"the token in {path} cannot be sent: use letters, digits and . _ ~ + / = - on one line")
    return token


def _state_folder() -> Path:
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pneumo"


def _listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Raises:
        UsageError: It is in use, or the address is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server((address[0], port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port} ({error.strerror}): give another --port") from None


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main() -> NoReturn:
    """Entry point of `pneumo-serve`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    quiet_libraries()
    run(app, "pneumo-serve")
