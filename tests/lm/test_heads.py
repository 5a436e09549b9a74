from __future__ import annotations

import pytest
import torch

from semhitok.errors import NotFoundError
from semhitok.lm import heads
from semhitok.lm.heads import FactorisedHead, FlatHead, Head, default_head, make_head

D, K, M = 16, 6, 5


@pytest.fixture(params=["flat", "factorised"])
def head(request: pytest.FixtureRequest) -> Head:
    torch.manual_seed(0)
    return make_head(request.param, D, K, M, 8)


@pytest.fixture
def hidden() -> torch.Tensor:
    return torch.randn(K * M, D, generator=torch.Generator().manual_seed(1))


def test_probabilities_sum_to_one(head: Head, hidden: torch.Tensor) -> None:
    log_probs = head.log_probs(hidden)
    assert log_probs.shape == (K * M, K * M) and log_probs.dtype == torch.float32
    assert torch.allclose(log_probs.logsumexp(-1), torch.zeros(K * M), atol=1e-5)


def test_both_levels_are_the_distribution_over_ids(head: Head, hidden: torch.Tensor) -> None:
    joint = head.log_probs(hidden).view(-1, K, M)
    semantic = head.semantic_log_probs(hidden)
    assert semantic.dtype == torch.float32
    assert torch.allclose(semantic, joint.logsumexp(-1), atol=1e-5)
    for i in range(K):
        pixel = head.pixel_log_probs(hidden, torch.full((len(hidden),), i))
        assert torch.allclose(semantic[:, i, None] + pixel, joint[:, i], atol=1e-5)
    mixed = torch.arange(len(hidden)) % K
    pixel = head.pixel_log_probs(hidden, mixed)
    wanted = joint.log_softmax(-1)[torch.arange(len(hidden)), mixed]
    assert torch.allclose(pixel, wanted, atol=1e-5)


def test_the_factorised_head_draws_without_all_logits() -> None:
    head, seen = FactorisedHead(8, 50, 20, 4), []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(output.numel())
    )
    with hook:
        head.semantic_log_probs(torch.randn(1, 8))
        head.pixel_log_probs(torch.randn(1, 8), torch.tensor([49]))
    assert max(seen) == 50


def test_loss_is_what_log_probs_say(head: Head, hidden: torch.Tensor) -> None:
    ids = torch.arange(K * M)
    said = -head.log_probs(hidden).gather(1, ids[:, None])[:, 0]
    assert torch.allclose(head.loss(hidden, ids), said, atol=1e-5)
    assert said.std() > 0.1


def test_pixels_depend_on_parent_and_context() -> None:
    torch.manual_seed(0)
    head, hidden = FactorisedHead(D, K, M, 8), torch.randn(2, D)
    pixel = head.log_probs(hidden).view(2, K, M).log_softmax(-1)
    assert (pixel[:, 0] - pixel[:, 1]).abs().max() > 0.1
    assert (pixel[0] - pixel[1]).abs().max() > 0.01


def test_a_few_at_a_time_is_all_at_once(
    head: Head, hidden: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = torch.arange(K * M)

    def results() -> list[torch.Tensor]:
        hidden.grad = None
        head.zero_grad()
        hidden.requires_grad_(True)
        loss = head.loss(hidden, ids)
        loss.square().sum().backward()
        grads = [p.grad for p in head.parameters()]
        return [loss, head.log_probs(hidden), hidden.grad, *(g.clone() for g in grads)]

    whole = results()
    monkeypatch.setattr(heads, "NUMBERS_AT_ONCE", 70)
    for few, one in zip(results(), whole, strict=True):
        assert torch.allclose(few, one, atol=1e-4)


def test_no_position_no_loss(head: Head) -> None:
    assert head.loss(torch.empty(0, D), torch.empty(0, dtype=torch.int64)).shape == (0,)


def test_the_factorised_head_never_makes_all_logits_for_a_loss() -> None:
    """A flat row of 2^40 ids would not fit anywhere."""
    head = FactorisedHead(8, 2, 3, 4)
    seen = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, inputs, output: seen.append(output.numel())
    )
    with hook:
        head.loss(torch.randn(7, 8), torch.arange(7) % 6).sum().backward()
    assert max(seen) < 7 * 6


def test_parameters() -> None:
    with torch.device("meta"):
        flat = FlatHead(3_584, 16_384, 12)
        small = FactorisedHead(3_584, 16_384, 12, 256)
    count = [sum(p.numel() for p in head.parameters()) for head in (flat, small)]
    assert count[0] == 704_643_072
    assert count[1] == 16_384 * (3_584 + 256) + 3_584 * 256 + 256 + 256 * 12 + 12 == 63_835_404


def test_names() -> None:
    assert [default_head(2**18), default_head(2**18 + 1)] == ["flat", "factorised"]


def test_unknown_name() -> None:
    with pytest.raises(NotFoundError, match="no head 'deep'; allowed: flat, factorised"):
        make_head("deep", D, K, M, 8)
