"""A unified model as a plain folder of its language model's kind, for servers that write text."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from semhitok.errors import FormatError
from semhitok.files import check_writable
from semhitok.lm.model import UnifiedModel

IDS_AT_ONCE = 2**16
"""Image ids that the adapter turns into rows at a time."""


def plain_bytes(model: UnifiedModel) -> int:
    """What `export_plain` writes, in bytes, but for a few kilobytes.

    The two tables have K * m rows more than the language model's own: 2^20 ids of width 3,584 are
    15 GB in half precision.
    """
    embedding, head = _tables(model.language)
    inside = {id(p) for p in (embedding.weight, *head.parameters())}
    rest = sum(p.nbytes for p in model.language.parameters() if id(p) not in inside)
    row = embedding.weight[0].nbytes + sum(p[0].nbytes for p in head.parameters())
    return rest + model.vocabulary.size * row


@torch.no_grad()
def export_plain(model: UnifiedModel, folder: str | Path) -> None:
    """Write a folder that `AutoModelForCausalLM` loads, and vLLM and SGLang where they know the
    language model's architecture: pictures in the prompt, text out.

    Its vocabulary is the unified one, so that a prompt is the same tokens; image ids are no strings
    of a tokenizer, and prompts go in as ids. (Until August 2025, pull request 22471, vLLM refused
    ids that its text tokenizer does not know, but for `skip_tokenizer_init`.)

    Rows of the embedding: text, the adapter's output of each image id, markers. Rows of the output
    layer: of text ids that the text tokenizer knows, ours; all others are the mean of those. Both
    tables are held in memory until they are written.

    What is exact: what it reads, and the logits of text ids, up to rounding. A mean of logits is
    below the largest of them, so greedy text needs nothing more, while sampling may choose an id
    that is no text, at most with probability r / (r + text_length) where r such rows are, and
    nearly never where the model is sure. To sample as `reply` does, allow the first `text_length`
    ids alone: `allowed_token_ids` in vLLM, `suppress_tokens` of the others in `transformers`.

    What is not there: drawing. Our softmax over ids lies within one outcome of another softmax,
    which no single linear layer can say.

    Where two tables of all ids are too large (`plain_bytes`), `model.language.save_pretrained` and
    prompts as `model.embed(tokens)` say the same: `inputs_embeds`, or `prompt_embeds` in vLLM.

    Args:
        folder: made if need be; files of the same names are replaced. The text tokenizer is not
            among them: save it beside.

    Raises:
        FormatError: the language model has an embedding or output layer that a table alone does
            not say, or weights that are not of its kind (adapters of `peft`, say).
        NotFoundError: no tokenizer attached.
        StorageError: not enough room.
    """
    language, words = model.language, model.vocabulary
    embedding, head = _tables(language)
    config = copy.deepcopy(language.config)
    config.vocab_size, config.tie_word_embeddings = words.size, False
    config.semhitok = {"vocabulary": words.to_dict(), "tokenizer_hash": model.config.tokenizer_hash}
    with torch.device("meta"):
        plain = type(language)(config)
    state = language.state_dict()
    strange = sorted(set(state) ^ set(plain.state_dict()))
    if strange:
        raise FormatError(
            f"the language model has weights that are not those of {config.model_type}, "
            f"{strange[0]} among them; merge adapters first (merge_and_unload)"
        )
    check_writable(Path(folder), plain_bytes(model))
    state[_name(language, embedding) + ".weight"] = _input_rows(model, embedding.weight)
    for name, rows in head.named_parameters():
        state[f"{_name(language, head)}.{name}"] = _output_rows(rows, words.text_length, words.size)
    plain.load_state_dict(state, assign=True)
    plain.generation_config = language.generation_config
    plain.save_pretrained(folder)


def _tables(language: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    """Input and output layer, which are to be no more than their weights."""
    embedding: nn.Module = language.get_input_embeddings()
    head: nn.Module = language.get_output_embeddings()  # type: ignore[no-untyped-call]
    for layer, kind in ((embedding, nn.Embedding), (head, nn.Linear)):
        if type(layer) is not kind:
            raise FormatError(
                f"{language.config.model_type} has a {type(layer).__name__} where a plain folder "
                f"needs a {kind.__name__}; export a model of Qwen2's, Qwen3's or Llama's kind"
            )
    return cast(nn.Embedding, embedding), cast(nn.Linear, head)


def _name(language: PreTrainedModel, layer: nn.Module) -> str:
    names: dict[nn.Module, str] = {module: name for name, module in language.named_modules()}
    return names[layer]


def _input_rows(model: UnifiedModel, text: Tensor) -> Tensor:
    """An embedding for each token of the vocabulary; the adapter is asked for a few at a time."""
    words = model.vocabulary
    rows = text.new_empty(words.size, text.shape[1])
    rows[: words.image_offset] = text
    for start in range(0, words.num_images, IDS_AT_ONCE):
        ids = torch.arange(start, min(start + IDS_AT_ONCE, words.num_images), device=text.device)
        rows[words.image_offset + ids] = model.adapter(ids, model.codes).to(rows)
    rows[words.marker_offset :] = model.markers.weight
    return rows


def _output_rows(text: Tensor, known: int, size: int) -> Tensor:
    """Weight or bias for each token: of the `known` text ids their own, of others the mean."""
    rows = text[:known].float().mean(dim=0).to(text.dtype).expand(size, *text.shape[1:]).clone()
    rows[:known] = text[:known]
    return rows
