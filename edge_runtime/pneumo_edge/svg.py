"""Pieces of the diagrams in reports: scalable, without a library, with words that a reader of screens finds."""

from __future__ import annotations

import html
from collections.abc import Iterable


def svg(width: float, height: float, says: str, *shapes: str) -> str:
    """Returns a diagram; a page may show it in any size."""
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{html.escape(says)}">'
        f"<title>{html.escape(says)}</title>{''.join(shapes)}</svg>"
    )


def rectangle(x: float, y: float, width: float, height: float, colour: str, says: str = "") -> str:
    """Returns a filled rectangle, with what is told of it where a pointer rests on it."""
    inside = f"<title>{html.escape(says)}</title>" if says else ""
    return f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}">{inside}</rect>'


def text(x: float, y: float, words: str, anchor: str = "middle", colour: str = "#46525a", weight: int = 400) -> str:
    """Returns a line of text."""
    return (
        f'<text x="{x:.2f}" y="{y:.2f}" text-anchor="{anchor}" fill="{colour}" font-weight="{weight}">'
        f"{html.escape(words)}</text>"
    )


def line(x0: float, y0: float, x1: float, y1: float, colour: str = "#d5dbde", dashes: str = "none") -> str:
    """Returns a straight line."""
    return (
        f'<line x1="{x0:.2f}" y1="{y0:.2f}" x2="{x1:.2f}" y2="{y1:.2f}" stroke="{colour}" stroke-dasharray="{dashes}"/>'
    )


def curve(points: Iterable[tuple[float, float]], colour: str, width: float = 2, dashes: str = "none") -> str:
    """Returns a line through points."""
    path = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}" stroke-dasharray="{dashes}"/>'
    )


def dot(x: float, y: float, radius: float, colour: str, says: str = "") -> str:
    """Returns a filled circle, with what is told of it where a pointer rests on it."""
    inside = f"<title>{html.escape(says)}</title>" if says else ""
    return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:g}" fill="{colour}">{inside}</circle>'
