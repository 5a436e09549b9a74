"""A small language model to begin with: a text tokenizer learned from captions, and a config.

    python language.py OUT --texts flickr8k-train.parquet --classes tiny-imagenet-train.parquet ...

Its weights are random: `weights: random` in the recipe. The text tokenizer is a byte-level BPE, so
that it can write anything, learned from the captions and class names of the training data and from
the phrases that semhitok's tasks say.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, PreTrainedTokenizerFast

from semhitok.lm import phrases

SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>"]
TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("out", type=Path)
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="parquet with captions")
    parser.add_argument("--classes", type=Path, nargs="*", default=[], help="with class_name")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--depth", type=int, default=7)
    options = parser.parse_args()
    text = learn_tokenizer(list(lines(options.texts, options.classes)), options.vocabulary)
    text.save_pretrained(options.out)
    config = AutoConfig.for_model(
        "qwen3",
        vocab_size=len(text),
        hidden_size=options.width,
        intermediate_size=round(options.width * 8 / 3 / 64) * 64,
        num_hidden_layers=options.depth,
        num_attention_heads=options.width // 64,
        num_key_value_heads=options.width // 64,
        head_dim=64,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=text.eos_token_id,
        pad_token_id=text.eos_token_id,
    )
    config.save_pretrained(options.out)
    print(f"{options.out}: {len(text):,} text ids, {options.depth} layers {options.width} wide")


def lines(texts: list[Path], classes: list[Path]) -> Iterator[str]:
    """What the model will read and write."""
    for path in texts:
        for captions in pq.read_table(path, columns=["captions"])["captions"].to_pylist():
            yield from captions
    for path in classes:
        names = set(pq.read_table(path, columns=["class_name"])["class_name"].to_pylist())
        asked = [(question, "") for question in (*phrases.IS_THERE, *phrases.DRAW_CLASS)]
        for a in map(phrases.with_article, sorted(names)):
            for question, answer in (*phrases.NAME, *asked):
                yield question.replace("<image>", "").strip().format(a=a)
                yield answer.format(a=a)
    yield from (phrases.YES, phrases.NO)


def learn_tokenizer(texts: list[str], vocabulary: int) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    text = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=SPECIAL[0], extra_special_tokens=SPECIAL[1:]
    )
    text.chat_template = TEMPLATE
    return text


if __name__ == "__main__":
    main()
