from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from semhitok.errors import (
    FormatError,
    NotFoundError,
)
from semhitok.lm.examples import Example
from semhitok.lm.generation import Sampling, draw, reply
from semhitok.lm.model import UnifiedModel
from semhitok.lm.processor import UnifiedProcessor
from semhitok.model import SemHiTok

Make = Callable[..., UnifiedProcessor]
GRID = torch.tensor([[0, 63, 5], [17, 30, 2]])
OTHER = torch.tensor([[1, 2], [3, 4]])
WAYS = [("chatml", "bytes"), ("thinking", "bytes"), ("plain", "words"), ("default", "bytes")]


def user(text: object) -> dict[str, object]:
    return {"role": "user", "content": text}


def says(text: str) -> dict[str, object]:
    return {"role": "assistant", "content": text}


def learned(processor: UnifiedProcessor, example: Example) -> list[str | Tensor]:
    """What the spans of an example say, end-of-turn tokens included."""
    out: list[str | Tensor] = []
    for start, stop in example.learned:
        for piece in processor.vocabulary.parse(example.input_ids[start:stop]):
            out.append(processor.text.decode(piece.tolist()) if piece.ndim == 1 else piece)
    return out


TALK = [user("<image>\nWhat is it?"), says("A dog."), user("draw a fish"), says("See: <image>!")]


@pytest.mark.parametrize(("template", "kind"), WAYS)
def test_replies_are_learned_with_their_pictures_and_ends(
    make_processor: Make, template: str, kind: str
) -> None:
    processor = make_processor(template, kind)
    found = learned(processor, processor.example(TALK, [GRID, OTHER]))
    end = processor.text.convert_ids_to_tokens(processor.stop[0])
    texts = [part.strip() for part in found if isinstance(part, str)]
    assert [t.replace(f" {end}", end) for t in texts] == [f"A dog.{end}", "See:", f"!{end}"]
    grids = [part for part in found if isinstance(part, Tensor)]
    assert len(grids) == 1 and torch.equal(grids[0], OTHER)
    labels = processor.example(TALK, [GRID, OTHER]).labels
    assert int((labels != -100).sum()) == sum(
        b - a for a, b in processor.example(TALK, [GRID, OTHER]).learned
    )


@pytest.mark.parametrize(("template", "kind"), WAYS)
def test_a_prompt_is_the_beginning_of_the_example(
    make_processor: Make, template: str, kind: str
) -> None:
    processor = make_processor(template, kind)
    example = processor.example(TALK, [GRID, OTHER])
    for number, (start, _) in zip((1, 3), example.learned, strict=True):
        prompt = processor.prompt(TALK[:number], [GRID])
        assert torch.equal(prompt, example.input_ids[:start])


def test_text_around_pictures_is_tokenized_as_by_itself(make_processor: Make) -> None:
    processor = make_processor("plain", "words")
    pieces = processor.vocabulary.parse(processor.example(TALK, [GRID, OTHER]).input_ids)
    runs = [p.tolist() for p in pieces if p.ndim == 1]
    wanted = ["<s>USER: ", "\nWhat is it? ASSISTANT: A dog. </s>USER: draw a fish ASSISTANT: See: "]
    alone = [processor.text(t, add_special_tokens=False)["input_ids"] for t in [*wanted, "! </s>"]]
    assert runs == alone
    assert sum(run.count(processor.text.bos_token_id) for run in runs) == 1


def test_content_as_a_list_is_the_same(make_processor: Make) -> None:
    processor = make_processor()
    listed = [user([{"type": "image"}, {"type": "text", "text": "\nWhat is it?"}]), *TALK[1:]]
    first, second = (processor.example(talk, [GRID, OTHER]) for talk in (TALK, listed))
    assert torch.equal(first.input_ids, second.input_ids) and first.learned == second.learned
    literal = processor.prompt([user([{"type": "text", "text": "an <image> tag"}])])
    assert "an <image> tag" in str(processor.decode(literal)[0])


@pytest.mark.parametrize(("template", "kind"), WAYS)
def test_what_is_left_of_a_drawing_is_the_unconditional_prompt(
    make_processor: Make, template: str, kind: str
) -> None:
    processor = make_processor(template, kind)
    for text in ("a photo of a dog.", "fish", ' "so" é 雪!\n- it is ?'):
        example = processor.example([user(text), says("<image>")], [GRID])
        assert example.dropped is not None
        start, stop = example.dropped
        assert processor.text.decode(example.input_ids[start:stop].tolist()).strip() == text.strip()
        bare = example.unconditional()
        before = bare.learned[0][0]
        assert torch.equal(bare.input_ids[:before], processor.unconditional())
        assert bare.input_ids[before] == processor.vocabulary.begin, "as draw() forces it"
        assert torch.equal(bare.input_ids[before:], example.input_ids[example.learned[0][0] :])
        assert torch.equal(bare.labels[bare.labels != -100], example.labels[example.labels != -100])
        assert torch.equal(
            processor.prompt([user(text)])[:start], processor.unconditional()[:start]
        )


def test_only_drawings_have_text_to_drop(make_processor: Make) -> None:
    processor = make_processor()
    assert processor.example(TALK, [GRID, OTHER]).dropped is None
    pair = [user("<image> again"), says("<image>")]
    assert processor.example(pair, [GRID, OTHER]).dropped is None


def test_text_that_the_tokenizer_joins_with_the_template(make_processor: Make) -> None:
    joining = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% else %}ow {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    joining = joining.replace("{{ m.role }}: ", "{{ m.role }}:\n")
    processor = make_processor(joining)
    assert processor.text.tokenize(" snow")[0] == "Ġsnow"
    with pytest.raises(
        FormatError, match="the text to draw, 'in the sn', is empty, has blanks at its end, or"
    ):
        processor.example([user("in the sn"), says("<image>")], [GRID])


def test_a_reply_that_the_tokenizer_joins_with_its_prompt(make_processor: Make) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    with pytest.raises(FormatError, match="joins the reply 'a</s>' with what is before it"):
        make_processor(template)
    processor = make_processor(template.replace(": ", ":\n"))
    processor.text.add_tokens(["\n\n"])  # as tokenizers have it
    with pytest.raises(FormatError, match="joins the reply '.ndog</s>' with what"):
        processor.example([user("what?"), says("\ndog")])


def test_plain_text_is_learned_whole(make_processor: Make) -> None:
    for kind, first in (("bytes", None), ("words", 0)):
        processor = make_processor(kind=kind)
        example = processor.plain("a black dog")
        assert example.learned == ((0, len(example)),) and example.dropped is None
        assert example.input_ids[-1] == processor.text.eos_token_id
        assert (example.input_ids[0] == processor.text.bos_token_id) == (first == 0)
        assert processor.decode(example.input_ids) == ["a black dog"]


# -- parts that do not fit ----------------------------------------------------------


def test_a_reply_cut_off_in_a_picture(make_processor: Make) -> None:
    processor = make_processor()
    with pytest.raises(FormatError, match=r"says 2x3 = 6 ids and an end, but is cut off after 4"):
        processor.decode(processor.vocabulary.layout(GRID)[:7])


def test_parts_that_do_not_belong_together(
    make_processor: Make, make_text: Callable[..., PreTrainedTokenizerFast]
) -> None:
    processor = make_processor()
    text = make_text()
    text.add_tokens(["more"])
    with pytest.raises(FormatError, match="the vocabulary is for"):
        UnifiedProcessor(text, processor.vocabulary, processor.tokenizer)
    processor.tokenizer.config.pixel.__dict__["num_codes"] = 5
    with pytest.raises(FormatError, match="has 16 x 5 codes, the vocabulary is for 16 x 4"):
        UnifiedProcessor(processor.text, processor.vocabulary, processor.tokenizer)


# -- saving --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("template", "kind"), WAYS)
def test_saved_and_loaded_it_is_the_same(
    make_processor: Make, template: str, kind: str, tmp_path: Path
) -> None:
    processor = make_processor(template, kind, size=(2, 3))
    (tmp_path / "config.json").write_text('{"model_type": "semhitok-unified"}')
    processor.text(["a", "longer"], padding=False)
    processor.save_pretrained(tmp_path)
    again = UnifiedProcessor.from_pretrained(tmp_path, processor.tokenizer)
    assert again.identity() == processor.identity() and again.stop == processor.stop
    assert again.pictures.size == (2, 3)
    first, second = (p.example(TALK, [GRID, OTHER]) for p in (processor, again))
    assert torch.equal(first.input_ids, second.input_ids) and first.learned == second.learned


def test_identity_tells_what_differs(make_processor: Make) -> None:
    base = make_processor().identity()
    assert base == make_processor(size=16).identity()
    assert base["template_hash"] != make_processor("plain").identity()["template_hash"]
    assert base["text_hash"] != make_processor(kind="words").identity()["text_hash"]


def test_folders_that_do_not_fit(
    make_processor: Make, make_tokenizer: Callable[..., SemHiTok], tmp_path: Path
) -> None:
    processor = make_processor()
    with pytest.raises(NotFoundError, match="has no processor.json"):
        UnifiedProcessor.from_pretrained(tmp_path, processor.tokenizer)
    processor.save_pretrained(tmp_path)
    other = make_tokenizer(seed=1)
    with pytest.raises(
        FormatError, match=rf"image tokenizer tiny-random \({processor.tokenizer_hash[:12]}\), not"
    ):
        UnifiedProcessor.from_pretrained(tmp_path, other)
    path = tmp_path / "processor.json"
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "format_version": 9}))
    with pytest.raises(FormatError, match="has format 9; this version reads 1"):
        UnifiedProcessor.from_pretrained(tmp_path, processor.tokenizer)
    path.write_text("{")
    with pytest.raises(FormatError, match="is damaged"):
        UnifiedProcessor.from_pretrained(tmp_path, processor.tokenizer)


def test_for_a_language_model(
    make_text: Callable[..., PreTrainedTokenizerFast],
    make_language: Callable[..., object],
    tiny_tokenizer: SemHiTok,
    tmp_path: Path,
) -> None:
    text = make_text()
    language = make_language(vocab_size=len(text) + 3)
    language.config.save_pretrained(tmp_path)  # type: ignore[attr-defined]
    text.save_pretrained(tmp_path)
    processor = UnifiedProcessor.for_language(tmp_path, tiny_tokenizer, max_side=6)
    words = processor.vocabulary
    assert (words.text_size, words.text_length, words.max_side) == (len(text) + 3, len(text), 6)
    with pytest.raises(NotFoundError, match="no language model"):
        UnifiedProcessor.for_language(tmp_path / "nowhere", tiny_tokenizer)


def test_a_tokenizer_in_parts_has_no_hash(make_processor: Make, tmp_path: Path) -> None:
    processor = make_processor()
    processor.tokenizer.save_pretrained(tmp_path)
    half = SemHiTok.from_pretrained(tmp_path, parts=("encode",))
    with pytest.raises(FormatError, match="its hash is over all parts: load it whole"):
        UnifiedProcessor(processor.text, processor.vocabulary, half)


def test_generation_takes_its_prompts(
    make_processor: Make, make_language: Callable[..., PreTrainedModel]
) -> None:
    processor = make_processor()
    words = processor.vocabulary
    model = UnifiedModel.unite(
        make_language(vocab_size=words.text_size),
        processor.tokenizer,
        text_length=words.text_length,
        max_side=words.max_side,
    ).eval()
    assert model.vocabulary == words
    bare = processor.unconditional()
    guided = Sampling(guidance=3.0)
    prompts = [processor.prompt([user("a dog")]), processor.prompt(TALK[:1], [GRID])]
    grids = draw(model, prompts, [(2, 3), (1, 1)], sampling=guided, unconditional=bare)
    assert [tuple(grid.shape) for grid in grids] == [(2, 3), (1, 1)]
    replies = reply(
        model, prompts, sizes=[(1, 2)], max_new_tokens=12, stop=processor.stop,
        sampling=guided, unconditional=bare,
    )  # fmt: skip
    for pieces in replies:
        decoded = processor.decode_pieces(pieces)
        assert len(decoded) == len(pieces) and {type(p) for p in decoded} <= {str, Tensor}
