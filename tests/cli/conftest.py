"""Model folders with random weights, and small pictures on disk."""

from __future__ import annotations

import dataclasses
import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

if TYPE_CHECKING:
    from semhitok.model import SemHiTok
    from semhitok.model.config import TokenizerConfig

CLASSES = ["dog", "cat", "fish", "dog", "cat"]
"""Of the captioned pictures."""


@pytest.fixture(scope="session")
def model(
    make_tokenizer: Callable[..., SemHiTok], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """16 x 4 codes, patches of 8 px, pictures of 32 px; its name is tiny-random."""
    from semhitok import hub

    folder = tmp_path_factory.mktemp("models") / "toy"
    hub.save(make_tokenizer(), folder, metrics={"psnr_db": 12.5})
    return folder


@pytest.fixture(scope="session")
def other_model(
    make_tokenizer: Callable[..., SemHiTok],
    tiny_config: TokenizerConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Of the same shape, with other weights."""
    from semhitok import hub

    folder = tmp_path_factory.mktemp("models") / "other"
    hub.save(make_tokenizer(dataclasses.replace(tiny_config, name="other"), seed=1), folder)
    return folder


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Makes smooth pictures, another one for each seed."""

    def make(seed: int, width: int = 40, height: int = 40) -> Image.Image:
        coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)

    return make


@pytest.fixture
def photos(picture: Callable[..., Image.Image], tmp_path: Path) -> Path:
    """Five pictures, two of them not square."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(40, 40), (64, 40), (40, 40), (40, 56), (40, 40)]):
        picture(number, *size).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="session")
def language(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config and a text tokenizer: no weights are needed."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("language")
    alphabet = ["</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    inner = Tokenizer(models.BPE({char: n for n, char in enumerate(alphabet)}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>").save_pretrained(folder)
    AutoConfig.for_model("qwen3", vocab_size=300).save_pretrained(folder)
    return folder


@pytest.fixture
def captioned(picture: Callable[..., Image.Image], tmp_path: Path) -> Path:
    """Five pictures with captions and class names, in the layout of the Hub."""
    pictures = []
    for seed in range(5):
        png = io.BytesIO()
        picture(seed).save(png, "PNG")
        pictures.append({"bytes": png.getvalue(), "path": None})
    table = pa.table(
        {
            "image": pictures,
            "captions": [[f"a {name}", f"one {name}"] for name in CLASSES],
            "class_name": CLASSES,
        }
    )
    pq.write_table(table, tmp_path / "photos.parquet")
    return tmp_path / "photos.parquet"


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """Commands give the package's log a place, which is gone after the test."""
    logger = logging.getLogger("semhitok")
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before
