from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from semhitok.errors import FormatError
from semhitok.lm.language import check_logits
from semhitok.lm.model import UnifiedModel
from semhitok.model import SemHiTok

MakeLanguage = Callable[..., PreTrainedModel]


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "mistral", "phi", "olmo2", "gemma"])
def test_logits_of_the_output_layer_are_accepted(make_language: MakeLanguage, family: str) -> None:
    language = make_language(family, **({"head_dim": 8} if family == "gemma" else {})).train()
    check_logits(language)
    assert language.training


@pytest.mark.parametrize(
    "family, changes, attribute",
    [
        ("gemma2", {"head_dim": 8}, "final_logit_softcapping=30.0"),
        ("gemma3_text", {"head_dim": 8, "final_logit_softcapping": 20.0}, "softcapping=20.0"),
        ("cohere", {}, "logit_scale=0.0625"),
        ("granite", {"logits_scaling": 8.0}, "logits_scaling=8.0"),
    ],
)
def test_changed_logits_are_refused_by_name(
    make_language: MakeLanguage,
    tiny_tokenizer: SemHiTok,
    family: str,
    changes: dict[str, Any],
    attribute: str,
) -> None:
    language = make_language(family, **changes)
    name = f"^{family} changes its logits after its output layer"
    with pytest.raises(FormatError, match=name + r" \(\w+=.*\); take a model that") as caught:
        UnifiedModel.unite(language, tiny_tokenizer, text_length=37)
    assert attribute in str(caught.value)


@pytest.mark.parametrize("family, changes", [("cohere", {"logit_scale": 1.0}), ("granite", {})])
def test_neutral_attributes_are_accepted(
    make_language: MakeLanguage, family: str, changes: dict[str, Any]
) -> None:
    check_logits(make_language(family, **changes))


def test_logits_that_no_attribute_tells_of(make_language: MakeLanguage) -> None:
    language = make_language()

    def scaled(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        output.logits = output.logits * 1.1
        return output

    language.register_forward_hook(scaled)
    with pytest.raises(FormatError, match="^qwen3 .*its own logits differ from those of its out"):
        check_logits(language)


def test_a_model_without_weights_is_judged_by_its_config(make_language: MakeLanguage) -> None:
    with torch.device("meta"):
        check_logits(make_language())
        with pytest.raises(FormatError, match="final_logit_softcapping"):
            check_logits(make_language("gemma2", head_dim=8))
