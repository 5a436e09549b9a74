"""Codebooks: who learns from which loss, whose codes are searched, and how tables move."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from semhitok.errors import RecipeError
from semhitok.model.codebook import (
    FreeOffsets,
    HierarchicalCodebook,
    LowRankOffsets,
    Quantized,
    SemanticCodebook,
)
from semhitok.model.config import FeedbackConfig
from semhitok.model.kmeans import kmeans
from semhitok.train.ema import CodebookEMA, WeightEMA
from semhitok.train.world import World

K, M, D = 6, 5, 8


def codebook(rank: int | None = None, *, moved: bool = True) -> HierarchicalCodebook:
    torch.manual_seed(0)
    offsets = FreeOffsets(K, M, D) if rank is None else LowRankOffsets(K, M, D, rank)
    book = HierarchicalCodebook(M, D, offsets)
    if moved:
        with torch.no_grad():
            for parameter in offsets.parameters():
                parameter.add_(torch.randn_like(parameter))
    return book


def some_latents() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 3, 4, D, generator=generator).requires_grad_()
    return latents, torch.randint(K, (2, 3, 4), generator=generator)


def quantize(kind: str) -> tuple[Tensor, Quantized, Tensor]:
    """Latents, what became of them, and the codes that their indices name."""
    latents, parents = some_latents()
    if kind == "semantic":
        semantic = SemanticCodebook(16, D)
        out = semantic(latents)
        return latents, out, semantic.codes[out.indices]
    book = codebook(None if kind == "free" else 2)
    out = book(latents, parents)
    return latents, out, book.table()[parents, out.indices].detach()


@pytest.mark.parametrize("kind", ["semantic", "free"])
def test_quantized_is_the_lookup_of_the_indices_bit_for_bit(kind: str) -> None:
    latents, out, codes = quantize(kind)
    assert out.quantized.equal(codes)
    assert out.indices.shape == latents.shape[:-1]


def test_low_rank_quantized_is_the_lookup_bit_for_bit() -> None:
    latents, parents = some_latents()
    book = codebook(2)
    out = book(latents, parents)
    assert out.quantized.equal(book.lookup(parents, out.indices))


@pytest.mark.parametrize("kind", ["semantic", "free", "low-rank"])
def test_straight_through_passes_gradients_unchanged(kind: str) -> None:
    latents, out, _ = quantize(kind)
    upstream = torch.randn(out.quantized.shape)
    (gradient,) = torch.autograd.grad((out.quantized * upstream).sum(), latents)
    assert gradient.equal(upstream)


@pytest.mark.parametrize("rank", [None, 2])
def test_commitment_loss_trains_only_the_latents(rank: int | None) -> None:
    book = codebook(rank)
    latents, parents = some_latents()
    book(latents, parents).commitment_loss.backward()
    assert latents.grad is not None and latents.grad.abs().sum() > 0
    assert all(p.grad is None for p in book.parameters())


@pytest.mark.parametrize("rank", [None, 2])
def test_codebook_loss_trains_only_the_codes(rank: int | None) -> None:
    book = codebook(rank)
    latents, parents = some_latents()
    book(latents, parents).codebook_loss.backward()
    assert latents.grad is None
    for parameter in book.parameters():  # base and offsets both
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0


def test_straight_through_does_not_train_the_codes() -> None:
    book = codebook()
    latents, parents = some_latents()
    book(latents, parents).quantized.sum().backward()
    assert all(p.grad is None for p in book.parameters())


def test_losses_are_the_mean_squared_distance() -> None:
    latents, out, codes = quantize("free")
    expected = (latents - codes).square().mean()
    assert torch.isclose(out.commitment_loss, expected)
    assert torch.isclose(out.codebook_loss, expected)


def test_only_chosen_codes_of_the_own_parent_get_gradients() -> None:
    book = codebook()
    assert isinstance(book.offsets, FreeOffsets)
    latents, _ = some_latents()
    parents = torch.full((2, 3, 4), 2)
    out = book(latents, parents)
    out.codebook_loss.backward()
    assert book.offsets.weight.grad is not None
    learned = book.offsets.weight.grad.abs().sum(-1).nonzero()
    assert set(map(tuple, learned.tolist())) == {(2, j) for j in out.indices.unique().tolist()}


def test_a_latent_finds_only_codes_of_its_parent() -> None:
    book = codebook()
    with torch.no_grad():
        for parent in range(K):
            book.free_offsets("test").weight[parent] += 100 * parent
    latents = torch.full((1, 1, K, D), 500.0)  # nearest of all are the codes of parent 5
    parents = torch.arange(K).view(1, 1, K)
    out = book(latents, parents)
    assert (out.quantized.mean(-1).flatten() - 100 * parents.flatten()).abs().max() < 10
    assert out.indices.max() < M


@pytest.mark.parametrize("rank", [None, 3])
def test_all_parents_start_at_the_base(rank: int | None) -> None:
    book = codebook(rank, moved=False)
    assert book.table().equal(book.base.expand(K, M, D))


@pytest.mark.parametrize("rank", [None, 3])
def test_rows_of_offsets_are_those_of_the_table(rank: int | None) -> None:
    book = codebook(rank)
    parents, indices = torch.meshgrid(torch.arange(K), torch.arange(M), indexing="ij")
    assert torch.allclose(book.offsets.rows(parents, indices), book.offsets.table(), atol=1e-6)
    assert torch.allclose(book.lookup(parents, indices), book.table(), atol=1e-6)
    assert book.table().std(dim=0).min() > 0  # parents differ, so that a mix-up would show


@pytest.mark.parametrize("rank", [None, 2])
def test_search_follows_every_change_of_the_codes(rank: int | None) -> None:
    book, (latents, parents) = codebook(rank).eval(), some_latents()
    changes = [
        lambda: book.base.mul_(-1),
        lambda: next(book.offsets.parameters()).detach().flatten()[:9].fill_(3.0),
        lambda: book.load_state_dict({n: -t for n, t in book.state_dict().items()}),
    ]
    seen = [book.search(latents, parents)]
    assert book.search(latents, parents).equal(seen[0])
    for change in changes:
        with torch.no_grad():
            change()
        seen.append(book.search(latents, parents))
        fresh = copy.deepcopy(book).train()  # makes its table anew each time
        assert seen[-1].equal(fresh.search(latents, parents))
    assert not seen[0].equal(seen[1]) and not seen[1].equal(seen[3])
    again = pickle.loads(pickle.dumps(book))
    assert len(pickle.dumps(book)) == len(pickle.dumps(fresh.eval()))
    assert again.search(latents, parents).equal(seen[-1])


def test_the_table_is_made_once_where_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    book, (latents, parents) = codebook().eval(), some_latents()
    calls, table = [], HierarchicalCodebook.table
    monkeypatch.setattr(
        HierarchicalCodebook, "table", lambda self: (calls.append(1), table(self))[1]
    )
    for _ in range(3):
        with torch.inference_mode():
            book.search(latents, parents)
    assert len(calls) == 1


def test_low_rank_offsets_can_learn_from_their_start() -> None:
    book = codebook(3, moved=False)
    latents, parents = some_latents()
    book(latents, parents).codebook_loss.backward()
    assert isinstance(book.offsets, LowRankOffsets)
    assert book.offsets.tables.grad is not None and book.offsets.tables.grad.abs().sum() > 0


def test_low_rank_offsets_are_few_numbers() -> None:
    low = LowRankOffsets(1000, 64, 8, 4)
    assert sum(p.numel() for p in low.parameters()) == 1000 * 4 + 4 * 64 * 8


def test_single_codes_of_low_rank_offsets_cannot_be_moved() -> None:
    assert codebook().free_offsets("restart") is not None
    with pytest.raises(RecipeError, match="restart moves single codes.*pixel.offset_rank to null"):
        codebook(2).free_offsets("restart")


def test_semantic_codes_are_unit_vectors_and_learn_by_no_gradient() -> None:
    book = SemanticCodebook(32, D)
    assert torch.allclose(book.codes.norm(dim=-1), torch.ones(32))
    assert not list(book.parameters())
    latents, _ = some_latents()
    assert not book(latents).codebook_loss.grad_fn
    assert list(book.state_dict()) == ["codes"]


def test_autocast_does_not_change_what_is_chosen() -> None:
    book, (latents, parents) = codebook(), some_latents()
    plain = book(latents, parents)
    with torch.autocast("cpu", torch.bfloat16):
        under = book(latents, parents)
    assert under.indices.equal(plain.indices) and under.quantized.equal(plain.quantized)
    assert under.commitment_loss.dtype == torch.float32


# -- moving averages -------------------------------------------------------------------------------


def test_moving_average_by_hand() -> None:
    """decay 0.9, two codes. Both start with count 1 and their own vector as the sum.

    Batch 1: code 0 is chosen by (2, 0) and (4, 0), code 1 by none.
        counts 0.9 + 0.1*2 = 1.1          and 0.9 + 0 = 0.9
        sums   0.9*(1, 0) + 0.1*(6, 0) = (1.5, 0)   and 0.9*(0, 1) = (0, 0.9)
        codes  (1.5/1.1, 0)               and (0, 0.9/0.9) = (0, 1), unmoved
    Batch 2: code 1 is chosen by (0, 3).
        counts 0.99, 0.9*0.9 + 0.1 = 0.91
        sums   (1.35, 0), 0.9*(0, 0.9) + 0.1*(0, 3) = (0, 1.11)
        codes  (1.35/0.99, 0) = (1.5/1.1, 0), unmoved; (0, 1.11/0.91)
    """
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    average = CodebookEMA(codes, decay=0.9)
    average.update(torch.tensor([[2.0, 0.0], [4.0, 0.0]]), torch.tensor([0, 0]), World())
    assert torch.allclose(average.counts, torch.tensor([1.1, 0.9]))
    assert torch.allclose(average.sums, torch.tensor([[1.5, 0.0], [0.0, 0.9]]))
    assert torch.allclose(codes, torch.tensor([[1.5 / 1.1, 0.0], [0.0, 1.0]]))
    average.update(torch.tensor([[0.0, 3.0]]), torch.tensor([1]), World())
    assert torch.allclose(average.counts, torch.tensor([0.99, 0.91]))
    assert torch.allclose(codes, torch.tensor([[1.5 / 1.1, 0.0], [0.0, 1.11 / 0.91]]))


def test_moving_average_of_unit_codes_keeps_length_one() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    average = CodebookEMA(codes, decay=0.5, unit=True)
    average.update(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), World())
    # sum 0.5*(1, 0) + 0.5*(0, 1): half way, at length one
    assert torch.allclose(codes, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 1.0]]))


def test_restart_moves_vector_sum_and_count_together() -> None:
    codes = torch.arange(8.0).view(4, 2)
    average = CodebookEMA(codes, decay=0.9)
    average.counts.copy_(torch.tensor([5.0, 0.01, 3.0, 0.02]))
    average.sums.copy_(codes * average.counts[:, None])
    kept = codes[[0, 2]].clone()
    latents = torch.tensor([[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]])
    dead = torch.tensor([False, True, False, True])
    assert average.restart(dead, latents, torch.Generator().manual_seed(0)) == 2
    assert codes[[0, 2]].equal(kept)
    moved = codes[[1, 3]]
    assert all(any(row.equal(x) for x in latents) for row in moved) and not moved[0].equal(moved[1])
    assert average.counts[1] == average.counts[3] > 1  # an average code's: not dead again at once
    assert torch.allclose(average.sums, codes * average.counts[:, None])
    before = codes.clone()
    average.update(torch.empty(0, 2), torch.empty(0, dtype=torch.int64), World())
    assert torch.allclose(codes, before)  # so that the next batch does not pull it back


def test_restart_with_nothing_dead_or_too_few_latents() -> None:
    codes = torch.arange(8.0).view(4, 2)
    average = CodebookEMA(codes)
    generator, before = torch.Generator(), codes.clone()
    assert average.restart(torch.zeros(4, dtype=torch.bool), torch.ones(2, 2), generator) == 0
    assert codes.equal(before)
    assert average.restart(torch.ones(4, dtype=torch.bool), torch.ones(3, 2), generator) == 3


def test_moving_average_resumes_from_its_state() -> None:
    latents, indices = torch.randn(20, 3), torch.arange(20) % 4
    codes = torch.randn(4, 3)
    average = CodebookEMA(codes)
    average.update(latents, indices, World())
    state = {k: v.clone() for k, v in average.state_dict().items()}
    again = CodebookEMA(codes.clone())
    again.load_state_dict(state)
    for one in (average, again):
        one.update(latents, indices, World())
    assert again.codes.equal(average.codes)


def test_weight_average_by_hand() -> None:
    layer = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(layer.weight, 0.0)
    average = WeightEMA(layer, decay=0.5)
    torch.nn.init.constant_(layer.weight, 1.0)
    average.update(layer, step=0)  # decay 1/10 so early: 0.1*0 + 0.9*1
    assert average.average["weight"].item() == pytest.approx(0.9)
    torch.nn.init.constant_(layer.weight, 3.0)
    average.update(layer, step=1000)  # decay 0.5: 0.5*0.9 + 0.5*3
    assert average.average["weight"].item() == pytest.approx(1.95)
    average.copy_to(layer)
    assert layer.weight.item() == pytest.approx(1.95)


# -- k-means ---------------------------------------------------------------------------------------


def clusters(num: int, each: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    centres = 20 * torch.randn(num, 4, generator=generator)
    rows = centres[:, None] + 0.1 * torch.randn(num, each, 4, generator=generator)
    return centres, rows.flatten(0, 1)


def test_kmeans_recovers_separated_clusters() -> None:
    centres, rows = clusters(12, 30)
    codes = kmeans(rows, 12, iterations=5, generator=torch.Generator().manual_seed(0))
    means = rows.view(12, 30, 4).mean(dim=1)
    assert torch.cdist(means, codes).amin(dim=1).max() < 1e-3
    assert centres.shape == codes.shape


def test_kmeans_depends_on_its_generator_only() -> None:
    _, rows = clusters(6, 40)
    first, again, other = (
        kmeans(rows, 20, iterations=3, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first.equal(again) and not first.equal(other)


def test_seeding_spreads_over_rare_clusters() -> None:
    """Eight rows among 800 lie far away: rows drawn evenly would miss most of them."""
    _, rows = clusters(8, 1)
    crowd = 0.01 * torch.randn(800, 4, generator=torch.Generator().manual_seed(3))
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        seeds = kmeans(torch.cat([crowd, rows]), 9, iterations=0, generator=generator)
        assert torch.cdist(rows, seeds).amin(dim=1).max() < 1e-3


def test_kmeans_on_the_sphere_gives_unit_codes() -> None:
    _, rows = clusters(5, 20)
    codes = kmeans(rows, 5, iterations=2, generator=torch.Generator(), unit=True)
    assert torch.allclose(codes.norm(dim=-1), torch.ones(5))


def test_kmeans_survives_duplicated_rows_and_refuses_too_few() -> None:
    same = torch.ones(10, 3)
    assert kmeans(same, 4, iterations=3, generator=torch.Generator()).equal(torch.ones(4, 3))
    with pytest.raises(ValueError, match="3 rows for 4 codes"):
        kmeans(same[:3], 4, iterations=1, generator=torch.Generator())


def fed_back(rounds: int) -> tuple[SemanticCodebook, SemanticCodebook, Tensor]:
    """A codebook without and with error feedback, and unit latents of pictures that differ."""
    torch.manual_seed(0)
    plain, fed = (
        SemanticCodebook(32, D, feedback)
        for feedback in (None, FeedbackConfig(rounds=rounds, rate=0.25))
    )
    fed.load_state_dict(plain.state_dict())
    latents = F.normalize(torch.randn(6, 8, 8, D) + torch.randn(6, 1, 1, D), dim=-1)
    return plain, fed, latents


def cosine_of_means(book: SemanticCodebook, latents: Tensor) -> Tensor:
    given = book.lookup(book.search(latents)).mean(dim=(1, 2))
    return F.cosine_similarity(given, latents.mean(dim=(1, 2)))


def test_error_feedback_brings_the_mean_of_codes_to_that_of_latents() -> None:
    plain, fed, latents = fed_back(rounds=4)
    before, after = cosine_of_means(plain, latents), cosine_of_means(fed, latents)
    assert (after > before).all() and (1 - after).mean() < 0.5 * (1 - before).mean()
    kept = (plain.search(latents) == fed.search(latents)).float().mean()
    assert kept > 0.7  # most patches keep their own nearest code


def test_one_round_of_feedback_is_the_search_of_latents_moved_by_the_error() -> None:
    plain, fed, latents = fed_back(rounds=1)
    for picture in latents:
        given, wanted = plain.lookup(plain.search(picture)).mean((0, 1)), picture.mean((0, 1))
        scale = (wanted @ given) / (given @ given)
        moved = picture + 0.25 * (wanted - scale * given)
        assert fed.search(picture).equal(torch.cdist(moved, plain.codes).argmin(-1))


def test_feedback_asks_no_other_picture_of_the_batch() -> None:
    _, fed, latents = fed_back(rounds=3)
    together = fed.search(latents)
    assert all(fed.search(latents[n : n + 1])[0].equal(together[n]) for n in range(len(latents)))
