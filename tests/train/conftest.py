"""What several tests of training share."""

from __future__ import annotations

from pathlib import Path

import pytest

from pictures import draw


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two patients of each class in train, one in test."""
    root = tmp_path / "data"
    names = (
        "train/NORMAL/IM-0115-0001.jpeg", "train/NORMAL/IM-0117-0001.jpeg",
        "train/PNEUMONIA/person1_bacteria_1.jpeg", "train/PNEUMONIA/person1_bacteria_2.jpeg",
        "train/PNEUMONIA/person2_virus_3.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg", "test/PNEUMONIA/person1_virus_6.jpeg",
    )  # fmt: skip
    for seed, name in enumerate(names):
        draw(root / name, seed)
    return root
