"""What a language model must be for ours to be made of it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging as of_transformers

from semhitok.errors import FormatError

NEUTRAL = {
    "final_logit_softcapping": (None,),  # Gemma 2
    "logits_soft_cap": (None,),  # RecurrentGemma
    "logit_scale": (None, 1),  # Cohere
    "logits_scaling": (None, 1),  # Granite
    "lm_head_multiplier": (None, 1),  # Falcon H1
    "output_multiplier": (None, 1),
    "logits_mup_width_multiplier": (None, 1),
}
"""Attributes of a config by which models change their logits, and what they say where they do not.
"""


def hide_bars() -> None:
    """No bars of `transformers`' own, in this process: a command's stderr has lines of ours."""
    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]


def check_logits(language: PreTrainedModel) -> None:
    """Raises:
    FormatError: the logits are not the output layer's of the decoder's hidden states.
    """
    config = language.config.get_text_config()
    for name, neutral in NEUTRAL.items():
        value = getattr(config, name, None)
        if value not in neutral:
            raise _refusal(language, f"{name}={value}")
    # What no attribute tells, its own forward does; of a model without weights nothing is known.
    if language.device.type != "meta" and not _agrees(language):
        raise _refusal(language, "its own logits differ from those of its output layer")


@torch.no_grad()
def _agrees(language: PreTrainedModel) -> bool:
    """Its logits of a few tokens against those that ours takes from it."""
    training = language.training
    language.train(False)
    tokens = torch.arange(4, device=language.device)[None]
    own = cast(Tensor, language(input_ids=tokens, use_cache=False).logits).float()
    embedded = language.get_input_embeddings()(tokens)
    decoder = cast(nn.Module, language.get_decoder())  # type: ignore[no-untyped-call]
    head = cast(nn.Module, language.get_output_embeddings())  # type: ignore[no-untyped-call]
    ours = head(decoder(inputs_embeds=embedded, use_cache=False).last_hidden_state).float()
    language.train(training)
    return torch.allclose(own, ours, rtol=0, atol=1e-3 * float(own.abs().amax()))


def _refusal(language: PreTrainedModel, reason: str) -> FormatError:
    return FormatError(
        f"{language.config.model_type} changes its logits after its output layer ({reason}); "
        "take a model that does not, such as Qwen2, Qwen3 or Llama"
    )
