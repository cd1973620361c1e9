"""What became of every film: one row each, on disk before anybody is told. The only module that knows SQL.

    received ── judge ──► answered ── sender ──► sent
        └──────────┴──────────► failed ◄──────────┘

A row goes from left to right, and a restart goes on from where each row stands. What waits to be sent has a
`next_attempt`; a film that could not be judged may be `failed` and have one as well: the report that says so.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from pneumo_edge.errors import UsageError


class State(StrEnum):
    """Where a film stands."""

    received = "received"
    answered = "answered"
    sent = "sent"
    failed = "failed"


@dataclass(frozen=True)
class Entry:
    """One film. Nothing in it tells whose film it is."""

    id: int
    key: str
    source: str
    """"dicom" or "page"."""
    received: float
    """Seconds since the epoch, UTC."""
    state: State
    label: str | None
    """"NORMAL" or "PNEUMONIA"; None before the answer, and where the verdict is withheld."""
    probability: float | None
    in_distribution: bool | None
    error: str | None
    """Why it failed, or why the last sending did not succeed."""
    attempts: int
    """Judgements begun while it is received, sendings tried after that."""
    next_attempt: float | None
    """When it is sent or sent again, in seconds since the epoch; None where nothing waits to be sent."""


_VERSION = 1

_SCHEMA = f"""
CREATE TABLE films (
    id INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    received REAL NOT NULL,
    state TEXT NOT NULL,
    label TEXT,
    probability REAL,
    in_distribution INTEGER,
    error TEXT,
    attempts INTEGER NOT NULL,
    next_attempt REAL
);
CREATE INDEX films_by_state ON films (state, id);
CREATE INDEX films_to_send ON films (next_attempt) WHERE next_attempt IS NOT NULL;
PRAGMA user_version = {_VERSION};
"""

_COLUMNS = ", ".join(field.name for field in fields(Entry))


class Journal:
    """The rows of one spool. Usable from several threads; each method is one transaction, synced before it returns."""

    def __init__(self, path: Path) -> None:
        """Opens the file, or makes it, readable by its owner alone.

        Raises:
            UsageError: It is no journal of this version.
        """
        path.touch(mode=0o600)
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._changes = 0
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            # In WAL mode NORMAL would lose the last rows in a power cut, after Success had gone back for them.
            self._db.execute("PRAGMA synchronous = FULL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} COMMIT;")
            elif version != _VERSION:
                raise UsageError(f"{path} is of version {version}, this pneumo knows {_VERSION}: give another spool")
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise UsageError(f"{path} is no journal of pneumo-serve ({error}): move it away") from None
        except UsageError:
            self._db.close()
            raise

    def add(self, key: str, source: str) -> tuple[Entry, bool]:
        """Puts a film on the list, as received.

        Returns:
            Its row, and False if it was there already.
        """
        with self._changed:
            new = self._db.execute(
                "INSERT INTO films (key, source, received, state, attempts) VALUES (?, ?, ?, 'received', 0)"
                " ON CONFLICT (key) DO NOTHING",
                (key, source, time.time()),
            ).rowcount
            if new:
                self.wake()
            (entry,) = self._rows("WHERE key = ?", key)
            return entry, bool(new)

    def again(self, key: str) -> None:
        """Puts a film that failed back to received: it came once more. Any other row stays as it is."""
        self._change(
            "UPDATE films SET state = 'received', error = NULL, attempts = 0, next_attempt = NULL"
            " WHERE key = ? AND state = 'failed'",
            key,
        )

    def find(self, key: str) -> Entry | None:
        """Returns the row of one film."""
        return self._one("WHERE key = ?", key)

    def recent(self, limit: int = 100) -> list[Entry]:
        """Returns the rows, newest first."""
        return self._rows("ORDER BY id DESC LIMIT ?", limit)

    def keys(self) -> set[str]:
        """Returns the keys of all films."""
        with self._lock:
            return {key for (key,) in self._db.execute("SELECT key FROM films")}

    def next_received(self) -> Entry | None:
        """Returns the row that has waited longest for its judgement."""
        return self._one("WHERE state = 'received' ORDER BY id LIMIT 1")

    def begin(self, key: str) -> None:
        """Counts that judging it begins: a film that ends the process each time is known by that."""
        self._change("UPDATE films SET attempts = attempts + 1 WHERE key = ? AND state = 'received'", key)

    def answered(self, key: str, record: Mapping[str, Any], *, send: bool = False) -> None:
        """Notes the answer.

        Args:
            key: Of the film.
            record: What `Prediction.record()` gave.
            send: The answer goes to the PACS.
        """
        self._change(
            "UPDATE films SET state = 'answered', label = ?, probability = ?, in_distribution = ?, error = NULL,"
            " attempts = 0, next_attempt = ? WHERE key = ? AND state = 'received'",
            record["label"],
            record["probability"],
            record["in_distribution"],
            0.0 if send else None,
            key,
        )

    def failed(self, key: str, why: str, *, send: bool = False) -> None:
        """Notes that a film cannot be judged.

        Args:
            key: Of the film.
            why: One sentence.
            send: A report that says so goes to the PACS.
        """
        self._change(
            "UPDATE films SET state = 'failed', error = ?, attempts = 0, next_attempt = ?"
            " WHERE key = ? AND state = 'received'",
            why,
            0.0 if send else None,
            key,
        )

    def next_to_send(self, now: float) -> Entry | None:
        """Returns the row whose sending is due and has been for longest."""
        return self._one("WHERE next_attempt <= ? ORDER BY next_attempt, id LIMIT 1", now)

    def next_due(self) -> float | None:
        """Returns when the next sending is due, in seconds since the epoch."""
        with self._lock:
            (due,) = self._db.execute("SELECT min(next_attempt) FROM films").fetchone()
        return None if due is None else float(due)

    def not_sent(self, key: str, why: str, next_attempt: float) -> None:
        """Notes that a sending did not succeed, why, and when it is tried again (seconds since the epoch)."""
        self._change(
            "UPDATE films SET error = CASE state WHEN 'failed' THEN error ELSE ? END, attempts = attempts + 1,"
            " next_attempt = ? WHERE key = ? AND next_attempt IS NOT NULL",
            why,
            next_attempt,
            key,
        )

    def sent(self, key: str) -> None:
        """Notes that the PACS has it all. A film that could not be judged stays failed.

        As with `not_sent` and `refused`, a film that has come once more in the meantime, and waits to be judged again,
        stays as it is.
        """
        self._change(
            "UPDATE films SET state = CASE state WHEN 'failed' THEN state ELSE 'sent' END,"
            " error = CASE state WHEN 'failed' THEN error END, attempts = attempts + 1, next_attempt = NULL"
            " WHERE key = ? AND next_attempt IS NOT NULL",
            key,
        )

    def refused(self, key: str, why: str) -> None:
        """Notes that the answer cannot be sent and will not be tried again; why it could not be judged stays."""
        self._change(
            "UPDATE films SET error = CASE state WHEN 'failed' THEN error || '; ' ELSE '' END || ?, state = 'failed',"
            " attempts = attempts + 1, next_attempt = NULL WHERE key = ? AND next_attempt IS NOT NULL",
            why,
            key,
        )

    def counts(self) -> dict[State, int]:
        """Returns how many films there are in each state."""
        with self._lock:
            found = dict(self._db.execute("SELECT state, count(*) FROM films GROUP BY state").fetchall())
        return {state: found.get(state.value, 0) for state in State}

    def forget_before(self, when: float) -> list[str]:
        """Removes the rows of films that came before `when` (seconds since the epoch) and wait for nothing.

        Returns:
            Their keys.
        """
        with self._lock:
            found = self._db.execute(
                "DELETE FROM films WHERE received < ? AND state != 'received' AND next_attempt IS NULL RETURNING key",
                (when,),
            ).fetchall()
        return [key for (key,) in found]

    def changes(self) -> int:
        """Returns a number that grows with every change that this process makes."""
        with self._lock:
            return self._changes

    def wait(self, seen: int, seconds: float) -> None:
        """Waits until `changes` differs from `seen`, at most so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._changes != seen, seconds)

    def wake(self) -> None:
        """Ends every `wait`: the process is about to stop."""
        with self._changed:
            self._changes += 1
            self._changed.notify_all()

    def close(self) -> None:
        """Closes the file."""
        with self._lock:
            self._db.close()

    def _change(self, statement: str, *values: Any) -> None:
        with self._changed:
            self._db.execute(statement, values)
            self.wake()

    def _one(self, condition: str, *values: Any) -> Entry | None:
        return next(iter(self._rows(condition, *values)), None)

    def _rows(self, condition: str, *values: Any) -> list[Entry]:
        with self._lock:
            found = self._db.execute(f"SELECT {_COLUMNS} FROM films {condition}", values).fetchall()  # noqa: S608
        return [_entry(row) for row in found]


def _entry(row: tuple[Any, ...]) -> Entry:
    values = dict(zip((field.name for field in fields(Entry)), row, strict=True))
    inside = values["in_distribution"]
    return Entry(
        **values | {"state": State(values["state"]), "in_distribution": None if inside is None else bool(inside)}
    )
