from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from semhitok.model.kmeans import kmeans


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_kmeans_finds_clusters_that_lie_apart() -> None:
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    noise = 0.1 * torch.randn(4, 50, 2, generator=seeded())
    rows = (centres[:, None] + noise).flatten(0, 1)
    codes = kmeans(rows, 4, iterations=5, generator=seeded())
    assert torch.cdist(centres, codes).amin(dim=1).max() < 0.1
    again = kmeans(rows, 4, iterations=5, generator=seeded())
    assert torch.equal(codes, again)


def test_kmeans_gives_unit_centres_and_reseeds_empty_ones() -> None:
    rows = F.normalize(torch.randn(60, 4, generator=seeded()), dim=-1)
    codes = kmeans(rows, 8, iterations=3, generator=seeded(), unit=True)
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(8))
    # Two distinct rows for four codes: two clusters are empty each time, none becomes NaN or zero.
    doubled = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(10, 1)
    codes = kmeans(doubled, 4, iterations=3, generator=seeded())
    assert all((doubled == code).all(dim=1).any() for code in codes)


def test_kmeans_refuses_fewer_rows_than_codes() -> None:
    with pytest.raises(Exception, match="3 rows for 4 codes"):
        kmeans(torch.randn(3, 2), 4, iterations=1, generator=seeded())
