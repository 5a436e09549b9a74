import pytest
import torch

from semhitok.errors import DataError, IdError
from semhitok.evaluate.codebooks import CodebookStatistics, CodeCounter

# K = 4 parents of m = 2: one with both children, one with one, one too rare to show both, one dead.
COUNTS = torch.tensor([[2, 2], [3, 0], [0, 1], [0, 0]])


def test_statistics_by_hand():
    s = CodebookStatistics.from_counts(COUNTS)
    assert s.patches == 8
    assert (s.semantic_usage, s.semantic_dead, s.flat_usage) == (3 / 4, 1, 4 / 8)
    # parents 1/2, 3/8, 1/8; ids 1/4, 1/4, 3/8, 1/8; the first parent, half of all, leaves a bit
    assert s.semantic_entropy == pytest.approx(1.4056, abs=1e-4)
    assert s.joint_entropy == pytest.approx(1.9056, abs=1e-4)
    assert s.pixel_entropy == pytest.approx(0.5)
    assert s.semantic_perplexity == pytest.approx(2.6493, abs=1e-3)
    assert s.children_mean == pytest.approx(4 / 3)
    assert (s.children_median, s.children_share) == (1.0, pytest.approx(2 / 3))
    assert (s.frequent_parents, s.frequent_children_share) == (2, 3 / 4)


def test_even_use_has_full_entropy():
    s = CodebookStatistics.from_counts(torch.full((8, 4), 3))
    assert (s.semantic_entropy, s.pixel_entropy, s.joint_entropy) == pytest.approx((3, 2, 5))
    assert s.semantic_perplexity == pytest.approx(8)
    assert s.semantic_usage == s.flat_usage == s.children_share == s.frequent_children_share == 1


def test_no_frequent_parent_is_none_rather_than_zero():
    s = CodebookStatistics.from_counts(torch.tensor([[1, 0, 0], [0, 1, 0]]))
    assert (s.frequent_parents, s.frequent_children_share) == (0, None)


def test_a_parent_with_exactly_m_patches_is_frequent():
    s = CodebookStatistics.from_counts(torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert (s.frequent_parents, s.frequent_children_share) == (1, 1.0)


def test_counter_adds_up_grids():
    counter = CodeCounter(4, 2)
    counter.update(torch.tensor([[[0, 0], [0, 0]]]), torch.tensor([[[0, 1], [0, 1]]]))
    counter.update(torch.tensor([1, 1, 2]), torch.tensor([0, 0, 1]))
    counter.update(torch.tensor([[1]]), torch.tensor([[0]]))
    assert torch.equal(counter.counts, COUNTS)
    assert counter.statistics() == CodebookStatistics.from_counts(COUNTS)


def test_codes_outside_their_codebook():
    counter = CodeCounter(4, 2)
    with pytest.raises(IdError, match="semantic code 4 does not exist; allowed: 0 to 3"):
        counter.update(torch.tensor([0, 4]), torch.tensor([0, 0]))
    with pytest.raises(IdError, match="pixel code -1 does not exist; allowed: 0 to 1"):
        counter.update(torch.tensor([0]), torch.tensor([-1]))
    with pytest.raises(DataError, match="no patches"):
        counter.statistics()
