"""pneumo-serve films: looks after the films of a pneumo-serve that is running, over its HTTP interface."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from pneumo_edge.command_line import say
from pneumo_edge.errors import PassingError, UsageError

app = typer.Typer(help="List, show, judge again, send again and delete films of a pneumo-serve that is running.")

_PATIENCE = 60.0
"""Seconds for an answer."""

_At = Annotated[str, typer.Option("--at", metavar="URL", help="Where pneumo-serve runs.")]
_Token = Annotated[
    Path | None, typer.Option("--token-file", dir_okay=False, help="The file that pneumo-serve was started with.")
]
_Keys = Annotated[list[str], typer.Argument(metavar="KEY...", help="Of films, or how they begin.", show_default=False)]
_HERE = "http://127.0.0.1:8000"


@app.command("list")
def list_films(
    state: Annotated[str | None, typer.Option(help="received, answered, sent or failed.")] = None,
    verdict: Annotated[str | None, typer.Option(help="NORMAL, PNEUMONIA or none.")] = None,
    search: Annotated[str | None, typer.Option(help="How the key begins, or a part of what --show shows.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="The newest alone.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    at: _At = _HERE,
    token_file: _Token = None,
) -> None:
    """Lists films, newest first."""
    wanted = {"state": state, "verdict": verdict, "search": search, "limit": limit}
    query = urlencode({name: value for name, value in wanted.items() if value is not None})
    told = _ask("GET", f"/v1/films?{query}", at, token_file)
    for film in told["films"]:
        print(json.dumps(film) if as_json else _line(film))
    if not as_json and told["total"] > len(told["films"]):
        say(f"{len(told['films'])} of {told['total']}")


@app.command()
def show(keys: _Keys, at: _At = _HERE, token_file: _Token = None) -> None:
    """Prints all that is known of films, as JSON."""
    for key in _resolved(keys, at, token_file):
        print(json.dumps(_ask("GET", f"/v1/films/{key}", at, token_file), indent=2))


@app.command()
def resend(keys: _Keys, at: _At = _HERE, token_file: _Token = None) -> None:
    """Sends the answers to films again, to every destination."""
    for key in _resolved(keys, at, token_file):
        print(_line(_ask("POST", f"/v1/films/{key}/resend", at, token_file)))


@app.command()
def rejudge(keys: _Keys, at: _At = _HERE, token_file: _Token = None) -> None:
    """Judges films again, with the model of today, and sends the answers."""
    for key in _resolved(keys, at, token_file):
        print(_line(_ask("POST", f"/v1/films/{key}/rejudge", at, token_file)))


@app.command()
def delete(keys: _Keys, at: _At = _HERE, token_file: _Token = None) -> None:
    """Deletes films and their answers here; what a PACS has stays there."""
    for key in _resolved(keys, at, token_file):
        _ask("DELETE", f"/v1/films/{key}", at, token_file)
        print(f"{key}  deleted")


def _line(film: dict[str, Any]) -> str:
    verdict = film["label"] or ("no verdict" if film["state"] != "received" else "-")
    parts = [film["key"], film["received"][:19], film["source"], film["state"], verdict]
    whose = [f"{name} {film[name]}" for name in ("accession", "patient_id") if film[name]]
    return "  ".join([*parts, *whose, *([film["error"]] if film["error"] else [])])


def _resolved(keys: list[str], at: str, token_file: Path | None) -> list[str]:
    """Returns the whole keys.

    Raises:
        UsageError: One of them is of no film, or of several.
    """
    whole = []
    for key in keys:
        told = _ask("GET", f"/v1/films?{urlencode({'search': key, 'limit': 1000})}", at, token_file)
        found = [film["key"] for film in told["films"] if film["key"].startswith(key.lower())]
        if len(found) != 1:
            raise UsageError(f"{key}: {'several films have' if found else 'no film has'} a key that begins so")
        whole += found
    return whole


def _ask(method: str, path: str, at: str, token_file: Path | None) -> Any:
    """Returns what pneumo-serve answers, from JSON.

    Raises:
        UsageError: It says that this cannot be done.
        PassingError: It is not there, or cannot do it now.
    """
    if not at.startswith(("http://", "https://")):
        raise UsageError(f"--at {at} is no address: give one such as {_HERE}")
    request = urllib.request.Request(at.rstrip("/") + path, method=method)  # noqa: S310 - http(s), as checked
    if token_file is not None:
        try:
            request.add_header("Authorization", f"Bearer {token_file.read_text(encoding='ascii').strip()}")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"{token_file} cannot be read ({error}): give the file that holds the token") from None
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:  # noqa: S310
            return json.loads(answer.read() or b"null")
    except urllib.error.HTTPError as error:
        try:
            why = json.loads(error.read())["error"]
        except (ValueError, KeyError, TypeError):
            why = f"HTTP status {error.code}"
        raise (PassingError if error.code >= 500 else UsageError)(why) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise PassingError(f"no pneumo-serve answers at {at} ({reason}): start it, or give --at") from None
