"""Moving averages of codebooks and of weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from semhitok.train.ema import CodebookEMA, WeightEMA
from semhitok.train.world import World


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_codes_are_the_decayed_means_of_their_latents() -> None:
    codes = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    ema = CodebookEMA(codes, decay=0.5)
    latents = torch.tensor([[3.0, 0.0], [5.0, 2.0], [0.0, 7.0]])
    ema.update(latents, torch.tensor([0, 0, 1]), World())
    assert ema.counts.tolist() == [1.5, 1.0]
    torch.testing.assert_close(codes[0], torch.tensor([0.5 + 4.0, 1.0]) / 1.5)
    torch.testing.assert_close(codes[1], torch.tensor([0.0, 4.0]))
    # The table itself is written to, not a copy of it.
    assert ema.codes is codes


def test_a_code_that_nobody_chooses_stays() -> None:
    codes = torch.randn(3, 4, generator=seeded())
    before = codes.clone()
    ema = CodebookEMA(codes, decay=0.9)
    for _ in range(200):
        ema.update(torch.ones(2, 4), torch.tensor([0, 0]), World())
    torch.testing.assert_close(codes[1:], before[1:])
    torch.testing.assert_close(codes[0], torch.ones(4))


def test_unit_codes_stay_at_length_one() -> None:
    codes = F.normalize(torch.randn(5, 4, generator=seeded()), dim=-1)
    ema = CodebookEMA(codes, decay=0.7, unit=True)
    latents = 3 * torch.randn(40, 4, generator=seeded(1))
    ema.update(latents, torch.arange(40) % 5, World())
    torch.testing.assert_close(codes.norm(dim=-1), torch.ones(5))


def test_restart_moves_vector_sum_and_count_together() -> None:
    codes = torch.randn(4, 3, generator=seeded())
    untouched = codes[1:3].clone()
    ema = CodebookEMA(codes)
    ema.counts.copy_(torch.tensor([0.0, 6.0, 2.0, 0.0]))
    latents = torch.randn(9, 3, generator=seeded(1))
    dead = torch.tensor([True, False, False, True])
    assert ema.restart(dead, latents, seeded()) == 2
    for place in (0, 3):
        assert (latents == codes[place]).all(dim=1).any()
        assert ema.counts[place] == 2.0
        torch.testing.assert_close(ema.sums[place], 2.0 * codes[place])
    assert not torch.equal(codes[0], codes[3])
    assert torch.equal(codes[1:3], untouched)
    assert ema.restart(torch.zeros(4, dtype=torch.bool), latents, seeded()) == 0
    assert ema.restart(torch.ones(4, dtype=torch.bool), latents[:1], seeded()) == 1


def test_codebook_state_goes_on_exactly() -> None:
    def advance(ema: CodebookEMA, steps: range) -> None:
        for step in steps:
            generator = seeded(step)
            latents = torch.randn(6, 3, generator=generator)
            ema.update(latents, torch.randint(4, (6,), generator=generator), World())

    one = CodebookEMA(torch.randn(4, 3, generator=seeded()))
    advance(one, range(3))
    other = CodebookEMA(one.codes.clone())
    other.load_state_dict(one.state_dict())
    advance(one, range(3, 6))
    advance(other, range(3, 6))
    assert torch.equal(one.codes, other.codes)


def test_weight_average_forgets_early_steps_faster() -> None:
    layer = nn.Linear(1, 1, bias=False)
    layer.weight.data.fill_(0.0)
    average = WeightEMA(layer, decay=0.5)
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0]):
        layer.weight.data.fill_(value)
        average.update(layer, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
        assert float(average.average["weight"]) == pytest.approx(expected)
    assert decay == 0.5  # the limit was reached
    average.copy_to(layer)
    assert layer.weight.item() == pytest.approx(expected)


def test_weight_average_is_no_view_of_the_weights() -> None:
    layer = nn.Linear(2, 2)
    average = WeightEMA(layer, 0.9)
    before = average.average["weight"].clone()
    layer.weight.data.zero_()
    assert torch.equal(average.average["weight"], before)
