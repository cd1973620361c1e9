"""What several tests of pneumo-serve share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[object]:
    """A `pneumo_edge.serve.spool.Spool` of the test's own."""
    from pneumo_edge.serve.spool import Spool

    opened = Spool(tmp_path / "spool")
    yield opened
    opened.close()
