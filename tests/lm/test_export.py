from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from semhitok.errors import FormatError, NotFoundError, StorageError
from semhitok.lm import export
from semhitok.lm.export import export_plain, plain_bytes
from semhitok.lm.generation import reply
from semhitok.lm.model import UnifiedModel
from semhitok.lm.sampling import Level, Sampling
from semhitok.lm.vocabulary import Vocabulary
from semhitok.model import SemHiTok

Make = Callable[..., UnifiedModel]
MakeLanguage = Callable[..., PreTrainedModel]
COLD = Level(temperature=0.0)
GREEDY = Sampling(COLD, COLD, COLD)


def plain_of(model: UnifiedModel, folder: Path) -> PreTrainedModel:
    export_plain(model, folder)
    return AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama", "phi"])
def test_it_writes_the_same_text_of_the_same_picture(
    make_language: MakeLanguage,
    tiny_tokenizer: SemHiTok,
    tokens: torch.Tensor,
    tmp_path: Path,
    family: str,
    tied: bool,
) -> None:
    language = make_language(family, tie_word_embeddings=tied)
    if family == "phi":  # whose output layer has a bias
        language.lm_head.bias.data = torch.linspace(0.5, -0.5, 40)
    model = UnifiedModel.unite(language, tiny_tokenizer, text_length=37, max_side=8).eval()
    plain = plain_of(model, tmp_path)
    assert type(plain) is type(model.language) and plain.config.vocab_size == model.vocabulary.size
    # Every logit of text, at each position: so sampling among text is the same too.
    ours = model(tokens, logits_to_keep=0).logits[..., :37].log_softmax(-1)
    theirs = plain(tokens).logits
    assert torch.allclose(theirs[..., :37].log_softmax(-1), ours, atol=1e-4)
    # The others are below the largest, wherever.
    assert (theirs[..., 37:].amax(-1) < theirs[..., :37].amax(-1)).all()
    for prompt in tokens:
        # Neither ends a text before its 20 tokens: 39 is an id that no text tokenizer knows.
        options: dict[str, Any] = dict(do_sample=False, eos_token_id=39, pad_token_id=0)
        mask = torch.ones_like(prompt)[None]
        written = plain.generate(prompt[None], attention_mask=mask, max_new_tokens=20, **options)
        wanted = reply(model, [prompt], sizes=[], max_new_tokens=20, stop=[39], sampling=GREEDY)
        assert written[0, len(prompt) :].tolist() == wanted[0][0].tolist()
        assert len(wanted[0][0]) == 20


def test_embeddings_as_a_prompt_need_no_tables(
    make_unified: Make, tokens: torch.Tensor, tmp_path: Path
) -> None:
    model = make_unified()
    model.language.save_pretrained(tmp_path)
    language = AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs = language(inputs_embeds=model.embed(tokens)).logits[..., :37].log_softmax(-1)
    ours = model(tokens, logits_to_keep=0).logits[..., :37].log_softmax(-1)
    assert torch.allclose(theirs, ours, atol=1e-4)


@pytest.mark.parametrize("image_input", ["dual", "table"])
def test_rows_are_made_a_few_at_a_time(
    make_unified: Make,
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    image_input: str,
) -> None:
    monkeypatch.setattr(export, "IDS_AT_ONCE", 10)
    model, seen = make_unified(image_input=image_input), []
    model.adapter.register_forward_hook(lambda _, args, rows: seen.append(len(rows)))
    rows = plain_of(model, tmp_path).get_input_embeddings().weight
    assert seen == [10] * 6 + [4]
    every = torch.arange(model.vocabulary.size)
    assert torch.allclose(rows, model.embed(every[None])[0], atol=1e-6)


@pytest.mark.parametrize("tied", [False, True])
def test_its_size_is_known_beforehand(
    make_language: MakeLanguage, tiny_tokenizer: SemHiTok, tmp_path: Path, tied: bool
) -> None:
    language = make_language(tie_word_embeddings=tied).to(torch.bfloat16)
    model = UnifiedModel.unite(language, tiny_tokenizer, text_length=37)
    export_plain(model, tmp_path)
    written = (tmp_path / "model.safetensors").stat().st_size
    assert 0 <= written - plain_bytes(model) < 5000
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16


def test_too_little_room(
    make_unified: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "plain_bytes", lambda model: 10**18)
    with pytest.raises(StorageError, match=r"this run writes about 1000000000.00 GB: free space"):
        export_plain(make_unified(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_it_tells_its_vocabulary_and_where_text_ends(make_unified: Make, tmp_path: Path) -> None:
    model = make_unified()
    model.language.generation_config.eos_token_id = [1, 2]
    plain = plain_of(model, tmp_path)
    assert plain.generation_config.eos_token_id == [1, 2]
    told = plain.config.semhitok
    assert Vocabulary.from_dict(told["vocabulary"]) == model.vocabulary
    assert told["tokenizer_hash"] == model.config.tokenizer_hash
    assert not hasattr(model.language.config, "semhitok")
    assert model.language.config.vocab_size == 40


def test_what_no_plain_folder_holds(
    make_unified: Make, make_language: MakeLanguage, tiny_tokenizer: SemHiTok, tmp_path: Path
) -> None:
    gemma = make_language("gemma3_text", head_dim=8)
    model = UnifiedModel.unite(gemma, tiny_tokenizer, text_length=37)
    with pytest.raises(FormatError, match="^gemma3_text has a Gemma3TextScaledWordEmbedding where"):
        export_plain(model, tmp_path)
    model = make_unified()
    model.codes.tokenizer = None
    with pytest.raises(NotFoundError, match="no tokenizer to look code vectors up in"):
        export_plain(model, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # peft asks for it
def test_adapters_are_to_be_merged_first(
    make_unified: Make, tokens: torch.Tensor, tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    adapted = peft.get_peft_model(make_unified(), config).eval()
    with pytest.raises(FormatError, match="those of qwen3, model.layers.0.self_attn.q_proj.base_"):
        export_plain(adapted.get_base_model(), tmp_path)
    ours = adapted(tokens, logits_to_keep=0).logits[..., :37].log_softmax(-1)
    merged = adapted.merge_and_unload()
    theirs = plain_of(merged, tmp_path)(tokens).logits[..., :37].log_softmax(-1)
    assert torch.allclose(theirs, ours, atol=1e-4)
    plain = make_unified()(tokens, logits_to_keep=0).logits[..., :37].log_softmax(-1)
    assert not torch.allclose(theirs, plain, atol=1e-2)
