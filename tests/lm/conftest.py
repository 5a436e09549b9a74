"""Tiny random language models, and the unified models made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from semhitok.lm.model import UnifiedModel
    from semhitok.model import SemHiTok

FAMILIES = ["qwen3", "qwen2", "llama"]
TEXT_SIZE, TEXT_LENGTH = 40, 37


@pytest.fixture
def make_language() -> Callable[..., PreTrainedModel]:
    """Builds a causal language model of 2 layers, width 32, with weights that are not near zero."""

    def build(family: str = "qwen3", **changes: Any) -> PreTrainedModel:
        from transformers import AutoConfig, AutoModelForCausalLM

        sizes = dict(
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=TEXT_SIZE,
            max_position_embeddings=256,
            initializer_range=0.2,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=None,
        )
        if family == "qwen3":
            sizes["head_dim"] = 8
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = AutoConfig.for_model(family, **{**sizes, **changes})
            return AutoModelForCausalLM.from_config(config).eval()

    return build


@pytest.fixture
def make_unified(
    make_language: Callable[..., PreTrainedModel], tiny_tokenizer: SemHiTok
) -> Callable[..., UnifiedModel]:
    """Builds a unified model of the tiny tokenizer (16 x 4 ids) and a tiny language model."""

    def build(family: str = "qwen3", **options: Any) -> UnifiedModel:
        from semhitok.lm.model import UnifiedModel

        language = make_language(family)
        settings = dict(text_length=TEXT_LENGTH, max_side=8, head_width=16)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return UnifiedModel.unite(language, tiny_tokenizer, **{**settings, **options}).eval()

    return build


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two rows: text, a picture of 2 x 3, text; and a picture of 3 x 2 between other text."""
    from semhitok.lm.vocabulary import Vocabulary

    words = Vocabulary(
        text_size=TEXT_SIZE, text_length=TEXT_LENGTH, num_semantic=16, num_pixel=4, max_side=8
    )
    text = torch.tensor([3, 7, 5])
    first = words.join([text, torch.tensor([[0, 63, 5], [17, 30, 2]]), torch.tensor([9, 4])])
    second = words.join([text[:1], torch.tensor([[8, 9], [63, 0], [1, 1]]), text.flip(0), text[:1]])
    return torch.stack([first, second])
