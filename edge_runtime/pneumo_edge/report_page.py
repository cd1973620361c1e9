"""What all reports share: a self-contained page with its style sheet, its tables, and percentages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pneumo_edge.command_line import NOT_A_DIAGNOSIS


def page(title: str, header: str, main: str, version: str) -> str:
    """Returns a whole HTML page that loads nothing from anywhere.

    Args:
        title: Title of the window, as HTML.
        header: Top of the page, as HTML.
        main: Sections of the page, as HTML.
        version: Version of pneumo that made the results, as HTML.
    """
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>
{style}</style></head><body>
<header>{header}</header>
<main>{main}</main>
<footer>{NOT_A_DIAGNOSIS} Made by pneumo {version}; this page loads nothing from anywhere.</footer>
</body></html>
"""


def table(caption: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table. All cells are HTML; the first cell of each row is its heading."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in header)
    body = "".join(
        f'<tr><th scope="row">{row[0]}</th>' + "".join(f"<td>{cell}</td>" for cell in row[1:]) + "</tr>" for row in rows
    )
    return (
        f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def percent(share: float, digits: int = 1) -> str:
    """Writes a share in [0, 1] for people."""
    return f"{100 * share:.{digits}f}\N{NO-BREAK SPACE}%"
