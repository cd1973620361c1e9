"""pneumo-serve: a page, an HTTP interface and a DICOM node, until it is stopped."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_version, quiet_libraries, run, say
from pneumo_edge.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    import uvicorn

    from pneumo_edge.serve.journal import Journal
    from pneumo_edge.serve.node import Node
    from pneumo_edge.serve.sender import Peer
    from pneumo_edge.serve.spool import Spool

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
    dicom_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Of the DICOM node, such as 11112; 0 for any. No node without it."),
    ] = None,
    ae_title: Annotated[str, typer.Option(metavar="AET", help="What the DICOM node calls itself.")] = "PNEUMO",
    allow: Annotated[
        str | None,
        typer.Option(metavar="AET,...", help="AE titles that may send films; all by default, on this machine alone."),
    ] = None,
    send_to: Annotated[
        str | None,
        typer.Option(metavar="AET@HOST:PORT", help="PACS that gets a picture and a report for each film from DICOM."),
    ] = None,
    keep_days: Annotated[
        int, typer.Option(min=1, help="Days until a film is deleted, unless its answer still waits to be sent.")
    ] = 30,
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
    """Answers to films that come from a page in a browser, over HTTP or over DICOM."""
    try:
        import uvicorn

        from pneumo_edge.serve.connection import Connection
        from pneumo_edge.serve.gate import is_loopback
        from pneumo_edge.serve.web import make_app
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "pneumo-serve") from error
    from pneumo_edge.classifier import Classifier
    from pneumo_edge.serve.journal import Journal
    from pneumo_edge.serve.judge import Judge
    from pneumo_edge.serve.sender import Sender
    from pneumo_edge.serve.spool import Spool

    token = None if token_file is None else _read_token(token_file)
    if token is None and not is_loopback(host):
        raise UsageError(f"{host} can be reached from other machines: give --token-file, or leave out --host")
    title, peer, callers = _read_dicom_options(host, dicom_port, ae_title, allow, send_to, is_loopback(host))
    _log_to_stderr()
    classifier = Classifier.load(model)
    with ExitStack() as parts:
        # Stopped in the opposite order: no new films, then the film at hand.
        listening = parts.enter_context(_listen(host, port))
        kept = Spool(spool or _state_folder() / "spool")
        parts.callback(kept.close)
        journal = Journal(kept.journal)
        parts.callback(journal.close)
        kept.sweep(journal.keys())
        node = None
        if dicom_port is not None:
            node = _open_node(journal, kept, title, host, dicom_port, callers)
        server = uvicorn.Server(
            uvicorn.Config(
                make_app(classifier, journal, kept, token=token),
                loop="asyncio",
                http=Connection,
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
        signals = _stop_at_signals(server)
        judge = Judge(classifier, journal, kept, send=peer is not None, keep_days=keep_days)
        judge.start()
        parts.callback(judge.stop)
        if peer is not None:
            sender = Sender(journal, kept, peer, title)
            sender.start()
            parts.callback(sender.stop)
        say(NOT_A_DIAGNOSIS)
        say(f"page and HTTP: {_address(listening)}")
        if node is not None:
            node.start()
            parts.callback(node.stop)
            say(f"DICOM: {title} on {host}, port {node.port}")
        if peer is not None:
            say(f"answers go to {peer.ae_title} on {peer.host}, port {peer.port}")
        server.run(sockets=[listening])
    if signals[:1] == [signal.SIGINT]:
        raise KeyboardInterrupt


def _stop_at_signals(server: uvicorn.Server) -> list[int]:
    """Lets SIGINT and SIGTERM end the server in good order, and returns the list of those that came."""
    came: list[int] = []

    def stop(number: int, _frame: object) -> None:
        came.append(number)
        server.should_exit = True

    # uvicorn stops in good order at these and then raises them once more, at which all the rest would be dropped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return came


def _read_dicom_options(
    host: str, port: int | None, ae_title: str, allow: str | None, send_to: str | None, alone: bool
) -> tuple[str, Peer | None, list[str]]:
    """Returns our AE title, the PACS, and the AE titles that may call; none for all of them.

    Raises:
        UsageError: They are not of the right form, contradict each other, or leave the door open.
    """
    from pneumo_edge.serve.sender import parse_ae_title, parse_peer

    if port is None:
        if allow is not None or send_to is not None:
            raise UsageError("--allow and --send-to are for films that come over DICOM: give --dicom-port as well")
        return ae_title, None, []
    callers = [] if allow is None else [parse_ae_title(title) for title in allow.split(",")]
    if not callers and not alone:
        raise UsageError(f"{host} can be reached from other machines: give --allow with the AE titles that may send")
    return parse_ae_title(ae_title), None if send_to is None else parse_peer(send_to), callers


def _open_node(journal: Journal, spool: Spool, title: str, host: str, port: int, callers: list[str]) -> Node:
    try:
        from pneumo_edge.serve.node import Node

        return Node(journal, spool, ae_title=title, host=host, port=port, allow=callers)
    except ImportError as error:
        raise MissingExtraError(error.name or "pynetdicom", "serve", "--dicom-port") from error


def _log_to_stderr() -> None:
    """Says on stderr what happens, film by film; with `PNEUMO_DEBUG=1` with tracebacks."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    if os.environ.get("PNEUMO_DEBUG") == "1":
        logging.getLogger("pneumo_edge").setLevel(logging.DEBUG)
    # These tell of patients and their films.
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False


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
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pneumo"
    except RuntimeError:
        raise UsageError("this user has no home folder to keep films and answers in: give --spool DIR") from None


def _listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Raises:
        UsageError: It is in use, or the address is not of this machine.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server((address[0], port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}, port {port} ({error.strerror}): give another --port") from None
    # asyncio does this only for sockets that it has opened itself. Head and body of an answer are written one after the
    # other, and Nagle's algorithm would hold the body back until the head is acknowledged: 40 ms for every answer.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def main() -> NoReturn:
    """Entry point of `pneumo-serve`."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    quiet_libraries()
    run(app, "pneumo-serve")
