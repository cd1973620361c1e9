"""Writes results: as a table on the terminal, as JSON and as Markdown."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pneumo_edge.atomic import write_json, write_text
from pneumo_edge.command_line import NOT_A_DIAGNOSIS, print_table
from pneumo_edge.errors import MissingExtraError, RunError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Table:
    """A table, and the sentences below it."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def header(kind: str, machine: dict[str, Any], load: dict[str, Any]) -> dict[str, Any]:
    """Returns the keys with which every JSON file of results begins."""
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "command": shlex.join(["pneumo-bench", *sys.argv[1:]]),
        "made": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "load": load,
    }


def machine_notes(machine: dict[str, Any], load: dict[str, Any]) -> tuple[str, ...]:
    """Returns one sentence on the machine and, if it was busy, one that says so."""
    governor = f", governor {machine['governor']}" if machine["governor"] else ""
    versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
    instructions = f" ({', '.join(machine['instructions'])})" if machine["instructions"] else ""
    shown_as = ", its other instructions hidden" if machine.get("shown_as") else ""
    notes = [
        f"{machine['processor']}{instructions}{shown_as}, {machine['cores']} cores{governor}, "
        f"{machine['memory'] / 2**30:.1f} GiB, {machine['system']}; {versions}; "
        f"load average {load['load_average_before']} before, {load['load_average_after']} after; "
        f"others took {load['others_share']:.1%} of the processor time"
    ]
    if load["busy"]:
        notes.append(f"THE MACHINE WAS BUSY, do not trust the times: {'; '.join(load['busy'])}")
    return tuple(notes)


def threads_text(count: int) -> str:
    """Writes a number of threads for people."""
    return "1 thread" if count == 1 else f"{count} threads"


def percent_text(found: Mapping[str, float]) -> str:
    """Writes a share and its interval for people, in percent."""
    return f"{found['value']:.1%} ({found['low'] * 100:.1f}–{found['high'] * 100:.1f})"


def share_text(found: Mapping[str, float]) -> str:
    """Writes a share and its interval for people, with four decimals."""
    return f"{found['value']:.4f} ({found['low']:.4f}–{found['high']:.4f})"


def short_text(found: Mapping[str, float]) -> str:
    """Writes a share and its interval for people, with three decimals."""
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


def read_result(path: Path) -> dict[str, Any]:
    """Reads a JSON file from docs/results/ or from a run.

    Raises:
        RunError: It is missing or damaged.
    """
    try:
        parsed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: call make results") from None
    except (ValueError, OSError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RunError(f"{path} is damaged: call make results")
    return parsed


def show(tables: list[Table]) -> None:
    """Prints the tables and their notes on stdout."""
    for table in tables:
        print_table(table.title, table.columns, table.rows)
        for note in table.notes:
            print(f"  {note}")
        print()


def make_folder(folder: Path) -> None:
    """Makes the folder of the results, before the measurement: so a fault does not come at its end.

    Raises:
        MissingExtraError: Figures cannot be drawn.
        OSError: The folder cannot be made.
    """
    if find_spec("matplotlib") is None:
        raise MissingExtraError("matplotlib", "bench", "--output, which draws figures,")
    folder.mkdir(parents=True, exist_ok=True)


def save(folder: Path, stem: str, record: dict[str, Any], tables: list[Table]) -> None:
    """Writes `stem.json` and `stem.md`, each whole or not at all."""
    write_json(folder / f"{stem}.json", record)
    parts = [f"Made on {record['made']} by\n\n    {record['command']}\n"]
    for table in tables:
        lines = [f"## {table.title}", "", row(table.columns), row(("---",) + ("---:",) * (len(table.columns) - 1))]
        lines += [row(cells) for cells in table.rows] + [""] + [f"- {note}" for note in table.notes]
        parts.append("\n".join(lines).rstrip() + "\n")
    text = "\n".join([*parts, NOT_A_DIAGNOSIS]) + "\n"
    # The command may name a folder that is no UTF-8.
    write_text(folder / f"{stem}.md", text.encode("utf-8", "backslashreplace").decode())


def row(cells: tuple[str, ...]) -> str:
    """Writes one row of a Markdown table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
