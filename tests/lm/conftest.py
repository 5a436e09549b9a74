"""Tiny random language models, and the unified models made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from semhitok.lm.assistant import Assistant
    from semhitok.lm.model import UnifiedModel
    from semhitok.lm.processor import UnifiedProcessor
    from semhitok.model import SemHiTok

FAMILIES = ["qwen3", "qwen2", "llama"]
TEXT_SIZE, TEXT_LENGTH = 40, 37

CHATML = (
    "{% for m in messages %}<|begin|>{{ m.role }}\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)
THINKING = (
    "{% set last = namespace(user=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}"
    "{% endfor %}{% for m in messages %}<|begin|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > last.user %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""Writes old turns in another way than the last, as models that think do."""
PLAIN = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }} "
    "{% elif m.role == 'user' %}USER: {{ m.content | trim }}"
    "{% else %} ASSISTANT: {{ m.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %} ASSISTANT:{% endif %}"
)
"""Of words alone, but for the end of a reply."""
TEMPLATES = {"chatml": CHATML, "thinking": THINKING, "plain": PLAIN, "default": None}
CORPUS = [
    "a photo of a dog.\nWhat is in this picture?\nIs there a goldfish? Yes. No.",
    "user assistant system: describe the picture, please. A black dog runs in the snow.",
    "USER: draw a red fish ASSISTANT: ",
]


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


@pytest.fixture(scope="session")
def _text_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """One of bytes, as of Qwen and Llama 3, and one of words with their blanks, as of Llama 2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<s>", "</s>", "<|begin|>", "<|end|>"]
    of_bytes = Tokenizer(models.BPE())
    of_bytes.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    of_bytes.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    of_words = Tokenizer(models.BPE(byte_fallback=True))
    of_words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    of_words.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    spare = [f"<0x{n:02X}>" for n in range(256)]
    for inner, more in ((of_bytes, []), (of_words, spare)):
        trainer = trainers.BpeTrainer(
            vocab_size=600,
            special_tokens=special + more,
            initial_alphabet=alphabet if inner is of_bytes else [],
            show_progress=False,
        )
        inner.train_from_iterator(CORPUS, trainer)
    of_words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return {
        name: PreTrainedTokenizerFast(
            tokenizer_object=inner,
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens=["<|begin|>", "<|end|>"],
        )
        for name, inner in (("bytes", of_bytes), ("words", of_words))
    }


@pytest.fixture
def make_text(
    _text_tokenizers: dict[str, PreTrainedTokenizerFast],
) -> Callable[..., PreTrainedTokenizerFast]:
    """A text tokenizer with one of TEMPLATES, or another template."""

    def make(template: str = "chatml", kind: str = "bytes") -> PreTrainedTokenizerFast:
        text = copy.deepcopy(_text_tokenizers[kind])
        text.chat_template = TEMPLATES.get(template, template)
        return text

    return make


@pytest.fixture
def make_processor(
    make_text: Callable[..., PreTrainedTokenizerFast], tiny_tokenizer: SemHiTok
) -> Callable[..., UnifiedProcessor]:
    """A processor of the tiny tokenizer (patch 8, 16 x 4 ids) and a text tokenizer."""

    def make(template: str = "chatml", kind: str = "bytes", **options: Any) -> UnifiedProcessor:
        from semhitok.lm.processor import UnifiedProcessor
        from semhitok.lm.vocabulary import Vocabulary

        text = make_text(template, kind)
        words = Vocabulary(
            text_size=len(text) + 5,
            text_length=len(text),
            num_semantic=16,
            num_pixel=4,
            max_side=8,
        )
        return UnifiedProcessor(text, words, tiny_tokenizer, **options)

    return make


@pytest.fixture
def assistant(
    make_language: Callable[..., Any], make_processor: Callable[..., UnifiedProcessor]
) -> Assistant:
    """A real one, with random weights; pictures of 2 x 2 patches."""
    from semhitok.lm.assistant import Assistant
    from semhitok.lm.model import UnifiedModel

    processor = make_processor(size=16)
    words = processor.vocabulary
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = UnifiedModel.unite(
            make_language(vocab_size=words.text_size), processor.tokenizer,
            text_length=words.text_length, max_side=8, head_width=16,
        )  # fmt: skip
    return Assistant(model.eval(), processor)
