"""pneumo-serve: a page, an HTTP interface and a DICOM node, until it is stopped."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import stat
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_version, quiet_libraries, run, say
from pneumo_edge.errors import MissingExtraError, UsageError
from pneumo_edge.serve.films_cli import app as films_app

if TYPE_CHECKING:
    import ssl

    import uvicorn

    from pneumo_edge.classifier import Classifier
    from pneumo_edge.serve.inbox import Inbox
    from pneumo_edge.serve.node import Node
    from pneumo_edge.serve.peers import Destination
    from pneumo_edge.serve.rules import Rules
    from pneumo_edge.serve.tls import Identity
    from pneumo_edge.words import Words

T = TypeVar("T")

_log = logging.getLogger(__name__)

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.add_typer(films_app, name="films")

_SHORTEST_TOKEN = 16
"""Characters. So many hexadecimal digits withstand a thousand guesses a second for 300 million years."""

_CONNECTIONS = 512
"""Open at one moment. uvicorn answers 503 to more."""

_LAST_ANSWERS = 3
"""Seconds that HTTP requests have to be answered when it stops."""

_SHOWN = ("accession", "patient-id")


@app.callback(invoke_without_command=True, epilog=NOT_A_DIAGNOSIS)
def serve(
    context: typer.Context,
    model: Annotated[
        Path | None, typer.Option(help="Bundle that pneumo-export wrote; the one that comes with pneumo by default.")
    ] = None,
    operating_point: Annotated[
        str | None, typer.Option(metavar="NAME", help="Threshold of the bundle: screening, balanced ...")
    ] = None,
    prevalence: Annotated[
        float | None,
        typer.Option(metavar="P", help="Share of films with pneumonia here, between 0 and 1; moves the probability."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for every one. Any but this machine needs --token-file.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of the page and the HTTP interface; 0 for any.")] = 8000,
    dicom_host: Annotated[
        str | None,
        typer.Option(metavar="HOST", help="Address of the DICOM node; that of --host by default. Needs --allow too."),
    ] = None,
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
        list[str] | None,
        typer.Option(
            metavar="PACS",
            help="AET@HOST:PORT, tls:AET@HOST:PORT or the address of a DICOMweb server, with =sc, =sr or =sc,sr behind "
            "it or not: gets the answer to each film from DICOM. More than once for several.",
        ),
    ] = None,
    answer: Annotated[
        str,
        typer.Option(metavar="OBJECTS", help="What a PACS gets where --send-to does not say: sc picture, sr report."),
    ] = "sc,sr",
    send_authorization: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False, metavar="FILE", help="File with the header for DICOMweb servers, such as: Bearer abc."
        ),
    ] = None,
    tls_certificate: Annotated[
        Path | None,
        typer.Option(dir_okay=False, metavar="FILE", help="PEM: the DICOM node takes no calls but over TLS."),
    ] = None,
    tls_key: Annotated[
        Path | None, typer.Option(dir_okay=False, metavar="FILE", help="PEM, if it is not in --tls-certificate.")
    ] = None,
    tls_authority: Annotated[
        Path | None,
        typer.Option(
            dir_okay=False,
            metavar="FILE",
            help="PEM: callers must show a certificate of it, and a PACS is checked by it.",
        ),
    ] = None,
    min_age: Annotated[
        float | None, typer.Option(min=0, metavar="YEARS", help="Younger patients get no verdict, but the reason.")
    ] = None,
    max_age: Annotated[
        float | None, typer.Option(min=0, metavar="YEARS", help="Older patients get no verdict, but the reason.")
    ] = None,
    other_parts: Annotated[
        str,
        typer.Option(
            metavar="judge|reason|ignore",
            help="Films that say they are of another part than the chest: judge them, give the reason for no "
            "verdict, or send nothing.",
        ),
    ] = "judge",
    show: Annotated[
        str | None,
        typer.Option(metavar="WHAT,...", help="Shown of DICOM films on the page: accession, patient-id. Never logged."),
    ] = None,
    language: Annotated[
        str,
        typer.Option(metavar="en|es|fr|pt", help="Of what a PACS gets. The page speaks that of its reader's browser."),
    ] = "en",
    keep_days: Annotated[
        int, typer.Option(min=1, help="Days of running until a film is deleted, unless its answer still waits.")
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
    if context.invoked_subcommand is not None:
        return
    try:
        from pneumo_edge.serve.gate import is_loopback
        from pneumo_edge.serve.peers import parse_ae_title
        from pneumo_edge.serve.rules import OtherParts, Rules
        from pneumo_edge.serve.tls import Identity
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "pneumo-serve") from error
    from pneumo_edge.classifier import Classifier
    from pneumo_edge.words import Words

    token = None if token_file is None else Token(token_file)
    if token is None and not is_loopback(host):
        raise UsageError(f"{host} can be reached from other machines: give --token-file, or leave out --host")
    dicom = _DicomOptions(dicom_host or host, dicom_port, parse_ae_title(ae_title), allow, send_to, answer)
    callers = dicom.callers(alone=is_loopback(dicom.host))
    destinations = dicom.destinations()
    identity = Identity(tls_certificate, tls_key, tls_authority)
    if tls_key is not None and tls_certificate is None:
        raise UsageError("--tls-key is for the certificate of --tls-certificate: give that as well")
    authorization = None if send_authorization is None else _read_line(send_authorization)
    rules = Rules(min_age, max_age, OtherParts(_one_of(list(OtherParts), other_parts, "--other-parts")))
    words = Words(language)
    shown = [] if show is None else [_one_of(_SHOWN, each.strip(), "--show") for each in show.split(",")]
    _log_to_stderr()
    _serve(
        Classifier.load(model, operating_point=operating_point, prevalence=prevalence),
        _Page(host, port, token, tuple(shown)),
        dicom,
        callers,
        destinations,
        identity,
        authorization,
        rules,
        words,
        spool or _state_folder() / "spool",
        keep_days,
    )


@dataclass(frozen=True)
class _Page:
    """Where page and HTTP interface are, and for whom."""

    host: str
    port: int
    token: Token | None
    shown: tuple[str, ...]


def _serve(
    classifier: Classifier,
    page: _Page,
    dicom: _DicomOptions,
    callers: list[str],
    destinations: list[Destination],
    identity: Identity,
    authorization: str | None,
    rules: Rules,
    words: Words,
    folder: Path,
    keep_days: int,
) -> None:
    """Runs all parts until a signal comes."""
    try:
        import uvicorn

        from pneumo_edge.serve.connection import Connection
        from pneumo_edge.serve.web import make_app
    except ImportError as error:
        raise MissingExtraError(error.name or "fastapi", "serve", "pneumo-serve") from error
    from pneumo_edge.serve.inbox import Inbox
    from pneumo_edge.serve.journal import Journal
    from pneumo_edge.serve.judge import Judge, remember
    from pneumo_edge.serve.peers import make_link
    from pneumo_edge.serve.sender import Sender, stop_all
    from pneumo_edge.serve.spool import Spool
    from pneumo_edge.watch import Watch

    send = {destination.name: destination.objects for destination in destinations}
    secured = identity.certificate is not None
    with ExitStack() as parts:
        # Stopped in the opposite order: no new films, then the film at hand.
        listening = parts.enter_context(_listen(page.host, page.port))
        kept = Spool(folder)
        parts.callback(kept.close)
        journal = Journal(kept.journal)
        parts.callback(journal.close)
        kept.sweep(journal.keys())
        for name, films in journal.retarget(send):
            was = f"{name}, which is not among --send-to" if name else "the PACS of an older pneumo-serve"
            _log.warning("%d answers waited for %s: they go to those of today", films, was)
        inbox = Inbox(journal, kept)
        node = None
        if dicom.port is not None:
            node = _open_node(inbox, dicom, callers, identity.for_callers() if secured else None)
        senders = [Sender(inbox, each, make_link(each, dicom.title, identity, authorization)) for each in destinations]
        watch = remember(Watch.of(classifier), inbox)
        app = make_app(classifier, inbox, token=page.token, rules=rules, send=send, show=page.shown, watch=watch)
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                loop="asyncio",
                http=Connection,
                ws="none",
                lifespan="on",
                log_config=None,
                log_level=logging.WARNING,
                access_log=False,
                # The log names who asked, also behind a proxy on this machine.
                proxy_headers=True,
                forwarded_allow_ips="127.0.0.1,::1",
                server_header=False,
                limit_concurrency=_CONNECTIONS,
                timeout_graceful_shutdown=_LAST_ANSWERS,
            )
        )
        signals = _stop_at_signals(server)
        judge = Judge(classifier, inbox, send=send, rules=rules, words=words, keep_days=keep_days, watch=watch)
        judge.start()
        parts.callback(judge.stop)
        say(NOT_A_DIAGNOSIS)
        say(f"page and HTTP: {_address(listening)}")
        if node is not None:
            node.start()
            parts.callback(node.stop)
            say(f"DICOM: {dicom.title} on {dicom.host}, port {node.port}{', over TLS' * secured}")
        say(f"operating point {classifier.operating_point}, at a prevalence of {classifier.prevalence:.1%}")
        for destination in destinations:
            say(f"answers go to {destination.name}: {', '.join(destination.objects)}")
        for sender in senders:
            sender.start()
        parts.callback(stop_all, senders)
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


@dataclass(frozen=True)
class _DicomOptions:
    """What the options say of DICOM, checked where it is asked for."""

    host: str
    port: int | None
    title: str
    allow: str | None
    send_to: list[str] | None
    answer: str

    def callers(self, *, alone: bool) -> list[str]:
        """Returns the AE titles that may call; none for all of them.

        Raises:
            UsageError: They are not of the right form, or missing where the node is not `alone`.
        """
        from pneumo_edge.serve.peers import parse_ae_title

        if self.port is None:
            if self.allow is not None:
                raise UsageError("--allow is for callers over DICOM: give --dicom-port as well")
            return []
        callers = [] if self.allow is None else [parse_ae_title(title) for title in self.allow.split(",")]
        if not callers and not alone:
            raise UsageError(
                f"{self.host} can be reached from other machines: give --allow with the AE titles that may send"
            )
        return callers

    def destinations(self) -> list[Destination]:
        """Returns who gets answers.

        Raises:
            UsageError: One of them is not of the right form, or named twice.
        """
        from pneumo_edge.serve.peers import parse_destination, parse_objects

        objects = parse_objects(self.answer)
        found = [parse_destination(text, objects) for text in self.send_to or ()]
        twice = next((each.name for each in found if [other.name for other in found].count(each.name) > 1), None)
        if twice is not None:
            raise UsageError(f"--send-to {twice} is there twice: give it once, with all that it is to get")
        return found


def _open_node(inbox: Inbox, dicom: _DicomOptions, callers: list[str], tls: ssl.SSLContext | None) -> Node:
    try:
        from pneumo_edge.serve.node import Node

        return Node(inbox, ae_title=dicom.title, host=dicom.host, port=dicom.port or 0, allow=callers, tls=tls)
    except ImportError as error:
        raise MissingExtraError(error.name or "pynetdicom", "serve", "--dicom-port") from error


def _one_of(choices: Sequence[T], text: T, option: str) -> T:
    if text not in choices:
        raise UsageError(f"{option} {text}: give one of {', '.join(map(str, choices))}")
    return choices[choices.index(text)]


def _log_to_stderr() -> None:
    """Says on stderr what happens, film by film; with `PNEUMO_DEBUG=1` with tracebacks."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO, stream=sys.stderr)
    if os.environ.get("PNEUMO_DEBUG") == "1":
        logging.getLogger("pneumo_edge").setLevel(logging.DEBUG)
    # These tell of patients and their films.
    for name in ("pydicom", "pynetdicom", "highdicom"):
        logging.getLogger(name).addHandler(logging.NullHandler())
        logging.getLogger(name).propagate = False


class Token:
    """The token in a file. Another one that is put there is the one from then on."""

    def __init__(self, path: Path) -> None:
        """Reads it.

        Raises:
            UsageError: See `_read_token`.
        """
        self._path = path
        self._token, self._seen = _read_token(path), _stamp(path)

    def __call__(self) -> str:
        """Returns it. Where what is there now is no token, it is the one from before."""
        now = _stamp(self._path)
        if now != self._seen:
            self._seen = now
            try:
                self._token = _read_token(self._path)
                _log.info("another token is in %s: from now on it is that one", self._path)
            except UsageError as error:
                _log.error("%s; the token from before is still the one", error)
        return self._token


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        there = path.stat()
    except OSError:
        return ()
    return there.st_ino, there.st_mtime_ns, there.st_size


def _read_token(path: Path) -> str:
    """Reads the token.

    Raises:
        UsageError: The file cannot be read, others can read it, or what it holds is no token.
    """
    token = _read_line(path)
    if not token:
        raise UsageError(f"{path} is empty: put a token into it, such as what `openssl rand -hex 16` prints")
    if len(token) < _SHORTEST_TOKEN:
        raise UsageError(f"the token in {path} is short: give {_SHORTEST_TOKEN} characters or more, chosen at random")
    if not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise UsageError(f"the token in {path} cannot be sent: use letters, digits and . _ ~ + / = - on one line")
    return token


def _read_line(path: Path) -> str:
    """Reads a secret: the one line of a file.

    Raises:
        UsageError: The file cannot be read, others can read it, or it has more than one line.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            text = file.read(4096)
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}): give a file that holds the secret") from None
    if os.name == "posix" and mode & (stat.S_IROTH | stat.S_IWOTH):
        raise UsageError(f"everybody on this machine can read or change {path}: chmod 600 {path}")
    line = text.decode("ascii", "replace").strip()
    if "\n" in line or "\r" in line:
        raise UsageError(f"{path} has more than one line: leave one")
    return line


def _state_folder() -> Path:
    try:
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "pneumo"
    except RuntimeError:
        raise UsageError("this user has no home folder to keep films and answers in: give --spool DIR") from None


def _listen(host: str, port: int) -> socket.socket:
    """Opens the port.

    Raises:
        UsageError, PassingError: It is in use, or the address is not of this machine: see `refused_port`.
    """
    from pneumo_edge.serve.listen import refused_port

    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listening = socket.create_server((address[0], port), family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise refused_port("the page", host, port, error) from None
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
