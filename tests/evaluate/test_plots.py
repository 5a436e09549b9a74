from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch

from semhitok.errors import DataError, MissingExtraError
from semhitok.evaluate.plots import DOTS_PER_INCH, PANEL_INCHES, plot_codes

WIDTH, HEIGHT = (round(inches * DOTS_PER_INCH) for inches in PANEL_INCHES)


def counts(semantic: int, pixel: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 9, (semantic, pixel), generator=generator)


@pytest.mark.parametrize(
    ("semantic", "pixel", "panels"), [(16, 4, 3), (1, 64, 2), (64, 1, 2), (300, 70, 3)]
)
def test_panels(semantic: int, pixel: int, panels: int) -> None:
    image = plot_codes(counts(semantic, pixel), "name with $ and _ and ^")
    assert image.size == (pytest.approx(panels * WIDTH, abs=1), pytest.approx(HEIGHT, abs=1))
    grey = np.asarray(image.convert("L"))
    thirds = np.array_split(grey, panels, axis=1)
    assert all((part < 160).mean() > 0.01 for part in thirds)  # each has ink
    edges = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    assert min(edge.min() for edge in edges) == 255  # and nothing is cut off


def test_sparse_use() -> None:
    one = torch.zeros(1000, 8, dtype=torch.int64)
    one[3, 2] = 1
    assert plot_codes(one, "one patch").width > 2 * WIDTH
    with pytest.raises(DataError, match="no patches"):
        plot_codes(torch.zeros(4, 2, dtype=torch.int64), "none")


def test_nothing_global_changes() -> None:
    matplotlib = importlib.import_module("matplotlib")
    before = dict(matplotlib.rcParams)
    plot_codes(counts(4, 4), "a")
    assert dict(matplotlib.rcParams) == before


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, *rest: object) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(MissingExtraError, match=r"pip install 'semhitok\[evaluate\]'"):
        plot_codes(counts(4, 4), "a")
