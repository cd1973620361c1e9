"""Where things lie, for every test."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The checkout."""
SHARED = ROOT.parent / "shared"
"""Films, weights and cases that are not part of the project; a test that uses them skips where they are absent."""
