from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from transformers import PreTrainedModel

from semhitok.errors import FormatError, IdError, NotFoundError, RangeError
from semhitok.lm.model import UnifiedConfig, UnifiedModel
from semhitok.model import SemHiTok

Make = Callable[..., UnifiedModel]
HEADS = ["flat", "factorised"]
FAMILIES = ["qwen3", "qwen2", "llama"]


@pytest.mark.parametrize("image_head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_loss_is_what_the_logits_say_at_each_position(
    make_unified: Make, tokens: torch.Tensor, family: str, image_head: str
) -> None:
    model = make_unified(family, image_head=image_head)
    logits = model(tokens, logits_to_keep=0).logits
    assert logits.shape == (*tokens.shape, model.vocabulary.size)
    assert torch.allclose(logits.logsumexp(-1), torch.zeros(tokens.shape), atol=1e-5)
    said = -logits[:, :-1].gather(2, tokens[:, 1:, None])[..., 0]
    for row in range(2):
        for place in range(1, tokens.shape[1]):
            labels = torch.full_like(tokens, -100)
            labels[row, place] = tokens[row, place]
            loss = model(tokens, labels=labels).loss
            assert torch.allclose(loss, said[row, place - 1], atol=1e-4)
    assert torch.allclose(model(tokens, labels=tokens).loss, said.mean(), atol=1e-5)


def test_only_the_last_logits_are_made(make_unified: Make, tokens: torch.Tensor) -> None:
    model = make_unified()
    whole = model(tokens, logits_to_keep=0).logits
    for kept in (1, 3):
        logits = model(tokens, logits_to_keep=kept).logits
        assert torch.allclose(logits, whole[:, -kept:], atol=1e-5)
    assert model(tokens).logits.shape[1] == 1
    assert model(tokens, labels=tokens).logits is None


@pytest.mark.parametrize("image_head", HEADS)
@pytest.mark.parametrize("image_input", ["dual", "semantic", "pixel", "table"])
def test_gradients_reach_everything_but_the_tokenizer(
    make_unified: Make,
    tiny_tokenizer: SemHiTok,
    tokens: torch.Tensor,
    image_input: str,
    image_head: str,
) -> None:
    tiny_tokenizer.requires_grad_(True)
    before = tiny_tokenizer.hash
    model = make_unified(image_input=image_input, image_head=image_head)
    model(tokens, labels=tokens).loss.backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not without
    assert all(p.grad is None for p in tiny_tokenizer.parameters())
    assert tiny_tokenizer.hash == before
    names = set(model.state_dict())
    assert names == {n for n, _ in model.named_parameters()}
    assert {n.split(".")[0] for n in names} == {
        "language",
        "adapter",
        "markers",
        "marker_head",
        "image_head",
    }


@pytest.mark.parametrize("image_head", HEADS)
@pytest.mark.parametrize("image_input", ["dual", "table"])
def test_all_parameters_take_part_in_a_step_of_text(
    make_unified: Make, image_input: str, image_head: str
) -> None:
    model = make_unified(image_input=image_input, image_head=image_head).train()
    text = torch.tensor([[3, 7, 5]])
    model(text, labels=text).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_image_ids_are_read_by_their_code_vectors(
    make_unified: Make, tiny_tokenizer: SemHiTok, tokens: torch.Tensor
) -> None:
    model = make_unified()
    embedded = model.embed(tokens)
    assert torch.equal(embedded[:, 0], model.language.get_input_embeddings()(tokens[:, 0]))
    begin = model.markers.weight[0]
    assert torch.equal(embedded[0, 3], begin) and torch.equal(embedded[1, 1], begin)
    assert torch.equal(embedded[0, 12], model.markers.weight[1])
    ids = torch.tensor([63])
    i, j = tiny_tokenizer.split(ids)
    semantic = tiny_tokenizer.semantic.codebook.lookup(i)
    semantic = semantic / semantic.norm() * semantic.shape[-1] ** 0.5
    pixel = tiny_tokenizer.pixel.codebook.lookup(i, j)
    wanted = torch.cat([model.adapter.semantic(semantic), model.adapter.pixel(pixel)], dim=-1)
    assert torch.allclose(embedded[0, 7], wanted[0], atol=1e-6)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_known_of_what_comes_later(
    make_unified: Make,
    tiny_tokenizer: SemHiTok,
    tokens: torch.Tensor,
    tmp_path: Path,
    family: str,
    attention: str,
) -> None:
    model = make_unified(family)
    model.save_pretrained(tmp_path)
    loaded = UnifiedModel.from_pretrained(tmp_path, attn_implementation=attention)
    for one in (model, loaded.attach(tiny_tokenizer)):
        whole = one(tokens, logits_to_keep=0).logits
        part = one(tokens[:, :8], logits_to_keep=0).logits
        assert torch.allclose(whole[:, :8], part, atol=1e-5)
    assert loaded.language.config._attn_implementation == attention


@pytest.mark.parametrize("image_head", HEADS)
def test_a_cache_changes_nothing(make_unified: Make, tokens: torch.Tensor, image_head: str) -> None:
    model = make_unified(image_head=image_head)
    whole = model(tokens, logits_to_keep=0).logits
    first = model(tokens[:, :8], logits_to_keep=0, use_cache=True)
    kept = {n: v for n, v in first.items() if n not in ("loss", "logits")}
    rest = model(tokens[:, 8:], logits_to_keep=0, **kept).logits
    assert torch.allclose(torch.cat([first.logits, rest], dim=1), whole, atol=1e-5)


def test_padding_on_the_left_changes_nothing(make_unified: Make, tokens: torch.Tensor) -> None:
    model = make_unified()
    padded = torch.cat([torch.zeros(2, 3, dtype=torch.int64), tokens], dim=1)
    mask = (torch.arange(padded.shape[1]) >= 3).long().expand(2, -1)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits = model(padded, attention_mask=mask, position_ids=positions).logits
    assert torch.allclose(logits, model(tokens).logits, atol=1e-5)


def test_the_language_model_keeps_its_attention(
    make_language: Callable[..., PreTrainedModel], tiny_tokenizer: SemHiTok
) -> None:
    """A config that is put into another loses it, and with it the mask of what is to come."""
    language = make_language()
    UnifiedConfig(text_config=language.config)
    assert language.config._attn_implementation == "sdpa"
    language.set_attn_implementation("eager")
    model = UnifiedModel.unite(language, tiny_tokenizer, text_length=37)
    assert language.config._attn_implementation == "eager"
    assert model.config._attn_implementation == "eager"


def test_activation_checkpointing_changes_nothing(make_unified: Make, tokens: torch.Tensor) -> None:
    model = make_unified().train()
    gradients = []
    for _ in range(2):
        model.zero_grad()
        model(tokens, labels=tokens, use_cache=False).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
        model.activation_checkpointing_enable()
    for plain, checkpointed in zip(*gradients, strict=True):
        assert torch.allclose(plain, checkpointed, atol=1e-6)


def test_trained_weights_of_the_language_model_stay(
    make_language: Callable[..., PreTrainedModel], tiny_tokenizer: SemHiTok, tmp_path: Path
) -> None:
    language = make_language()
    language.save_pretrained(tmp_path)
    loaded = type(language).from_pretrained(tmp_path)
    model = UnifiedModel.unite(loaded, tiny_tokenizer, text_length=37)
    for name, tensor in language.state_dict().items():
        assert torch.equal(model.language.state_dict()[name], tensor), name


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("image_head", HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_saved_and_loaded(
    make_language: Callable[..., PreTrainedModel],
    tiny_tokenizer: SemHiTok,
    tokens: torch.Tensor,
    tmp_path: Path,
    family: str,
    image_head: str,
    tied: bool,
) -> None:
    language = make_language(family, tie_word_embeddings=tied)
    model = UnifiedModel.unite(
        language, tiny_tokenizer, text_length=37, max_side=8, image_head=image_head, head_width=16
    ).eval()
    model.save_pretrained(tmp_path)
    loaded = UnifiedModel.from_pretrained(tmp_path).attach(tiny_tokenizer)
    assert loaded.vocabulary == model.vocabulary
    whole = dict(logits_to_keep=0)
    assert torch.equal(loaded(tokens, **whole).logits, model(tokens, **whole).logits)
    tables = loaded.get_input_embeddings().weight, loaded.get_output_embeddings().weight
    assert (tables[0] is tables[1]) == tied


def test_what_is_pushed_to_the_hub_loads(
    make_unified: Make,
    tiny_tokenizer: SemHiTok,
    tokens: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_repo(api: Any, repo_id: str, **options: Any) -> Any:
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def create_commit(api: Any, repo_id: str, operations: list[Any], **options: Any) -> None:
        for one in operations:
            shutil.copy(one.path_or_fileobj, tmp_path / one.path_in_repo)

    def load_card(*args: Any, **options: Any) -> None:
        raise EntryNotFoundError("no card yet")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "create_commit", create_commit)
    monkeypatch.setattr(huggingface_hub.ModelCard, "load", load_card)
    model = make_unified()
    model.push_to_hub("owner/name")
    loaded = UnifiedModel.from_pretrained(tmp_path).attach(tiny_tokenizer)
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_another_tokenizer_is_refused(
    make_unified: Make,
    make_tokenizer: Callable[..., SemHiTok],
    tokens: torch.Tensor,
    tmp_path: Path,
) -> None:
    make_unified().save_pretrained(tmp_path)
    loaded = UnifiedModel.from_pretrained(tmp_path)
    with pytest.raises(NotFoundError, match="no tokenizer to look code vectors up in"):
        loaded(tokens)
    with pytest.raises(FormatError, match=r"is not the tokenizer of this model, tiny-random \("):
        loaded.attach(make_tokenizer(seed=1))


def test_a_tokenizer_in_parts_is_refused(make_unified: Make, tiny_tokenizer: SemHiTok) -> None:
    model = make_unified()
    tiny_tokenizer.parts = ("decode",)
    with pytest.raises(FormatError, match=r"loaded for \['decode'\]; its hash is over all parts"):
        model.attach(tiny_tokenizer)


def test_tokens_outside_the_vocabulary(make_unified: Make, tokens: torch.Tensor) -> None:
    model = make_unified()
    tokens[1, 2] = model.vocabulary.size
    with pytest.raises(IdError, match=r"token 122 at \(1, 2\) is outside the vocabulary"):
        model(tokens)


def test_a_text_tokenizer_with_too_many_ids(make_unified: Make) -> None:
    with pytest.raises(RangeError, match="has 41 ids, but the language model has 40 rows"):
        make_unified(text_length=41)


def test_the_default_head_follows_the_vocabulary(make_unified: Make) -> None:
    assert make_unified().config.image_head == "flat"


def test_a_config_is_plain_json(make_unified: Make) -> None:
    config = make_unified().config
    again = UnifiedConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert again.vocabulary["image_offset"] == 40


def test_half_precision(
    make_language: Callable[..., PreTrainedModel], tiny_tokenizer: SemHiTok, tokens: torch.Tensor
) -> None:
    language = make_language().to(torch.bfloat16)
    model = UnifiedModel.unite(language, tiny_tokenizer, text_length=37, max_side=8)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(tokens).logits.dtype == torch.float32
    model(tokens, labels=tokens).loss.backward()


def test_without_pictures_no_tokenizer_is_needed(make_unified: Make, tokens: torch.Tensor) -> None:
    model = make_unified()
    model.codes.tokenizer = None
    assert model(tokens[:, :1], labels=tokens[:, :1]) is not None


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_where_positions_start_anew_nothing_before_is_seen(
    make_unified: Make, tokens: torch.Tensor, family: str, attention: str
) -> None:
    """In training as in evaluation, and with the cache that a language model makes by default."""
    for training in (False, True):
        model = make_unified(family).train(training)
        model.set_attn_implementation(attention)
        assert model.language.config._attn_implementation == attention
        row, length = tokens[:1], tokens.shape[1]
        packed = torch.cat([row.flip(1)[:, :3] % 30, row], dim=1)
        positions = torch.cat([torch.arange(3), torch.arange(length)])[None]
        labels = torch.cat([torch.full((1, 4), -100), row[:, 1:]], dim=1)
        alone = model(row, labels=row).loss
        loss = model(packed, position_ids=positions, labels=labels).loss
        assert torch.allclose(loss, alone, atol=1e-5)
        assert not torch.allclose(model(packed, labels=labels).loss, alone, atol=1e-3)
