"""What tests share: seeded pictures, a tokenizer with random weights, and where ../shared is."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from s3 import BUCKET, Store, serve

if TYPE_CHECKING:
    from semhitok.model import SemHiTok
    from semhitok.model.config import TokenizerConfig

SHARED = Path(
    os.environ.get("SEMHITOK_SHARED", Path(__file__).resolve().parents[2] / "shared")
).resolve()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of photos, teacher and judge that stands beside the repository."""
    if not (SHARED / "data").is_dir():
        pytest.skip(f"no shared folder at {SHARED}; set SEMHITOK_SHARED to one")
    return SHARED


@pytest.fixture
def images() -> torch.Tensor:
    """Four smooth seeded pictures of 32 px, (4, 3, 32, 32) in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(4, 3, 5, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)


# The package is imported inside the fixtures: this file loads before pytest has put the checks of
# the annotations in place, and what it imported would go unchecked in every test.


@pytest.fixture
def as_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checks of annotations, as for a user: wrong input reaches the package's own messages."""
    import jaxtyping

    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture(scope="session")
def tiny_config() -> TokenizerConfig:
    """16 x 4 codes, 32 px, patch 8, and a MobileNetV2 of few channels as the teacher."""
    from transformers import MobileNetV2Config

    from semhitok.model.config import (
        PixelConfig,
        PixelDecoderConfig,
        SemanticConfig,
        TokenizerConfig,
        TransformerConfig,
    )
    from semhitok.model.teacher import describe_teacher
    from semhitok.model.trunk_source import vision_architecture, with_output_stride

    raw = MobileNetV2Config(depth_multiplier=0.1).to_dict()
    architecture = with_output_stride(vision_architecture(raw, "test"), 8)
    half = (0.5, 0.5, 0.5)
    teacher = describe_teacher("random", architecture, (-1,), half, half)
    transformer = TransformerConfig(width=16, depth=1, heads=2, mlp_ratio=2.0)
    return TokenizerConfig(
        name="tiny-random",
        patch_size=8,
        image_size=32,
        semantic=SemanticConfig(
            teacher=teacher, num_codes=16, code_dim=teacher.dim, decoder=transformer
        ),
        pixel=PixelConfig(
            num_codes=4,
            code_dim=6,
            encoder=transformer,
            decoder=PixelDecoderConfig(
                transformer=transformer, stage_widths=(8,), stage_depths=(1,)
            ),
        ),
    )


@pytest.fixture(scope="session")
def make_tokenizer(tiny_config: TokenizerConfig) -> Callable[..., SemHiTok]:
    """Builds a tokenizer whose random weights are not zero and whose codes are all in use."""

    def build(config: TokenizerConfig = tiny_config, seed: int = 0) -> SemHiTok:
        from semhitok.model import SemHiTok

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = SemHiTok(config).eval()
            for name, tensor in model.state_dict().items():
                if not name.startswith("semantic.trunk"):
                    tensor.add_(0.1 * torch.randn_like(tensor))
                elif tensor.ndim > 1:  # the library's own start lets features fade to nothing
                    torch.nn.init.kaiming_normal_(tensor)
            pictures = torch.rand(16, 3, 32, 32)
            semantic = model.semantic
            with torch.no_grad():
                features = semantic.trunk_features(pictures, (4, 4))
                semantic.projection.fit(features.flatten(0, 2))
                latents = semantic.latents(pictures, (4, 4)).flatten(0, 2)
                rows = torch.randperm(len(latents))[: config.semantic.num_codes]
                semantic.codebook.codes.copy_(latents[rows])
        return model

    return build


@pytest.fixture(scope="session")
def _tokenizer(make_tokenizer: Callable[..., SemHiTok]) -> SemHiTok:
    return make_tokenizer()


@pytest.fixture
def tiny_tokenizer(_tokenizer: SemHiTok) -> SemHiTok:
    """A tokenizer with random weights: K = 16, m = 4, patch 8, 32 px. A copy: break it freely."""
    return copy.deepcopy(_tokenizer)


@pytest.fixture(scope="session")
def contrastive(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders of small random models with two towers (clip, siglip, siglip2) and a tokenizer."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = "<pad> <unk> a photo of the large small red blue green fish house sea . </s>".split()
    vision = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        patch_size=16,
    )
    text = dict(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=len(words),
        max_position_embeddings=10,
        bos_token_id=0,
        eos_token_id=len(words) - 1,
        pad_token_id=0,
    )
    sizes = {
        "clip": {"image_size": 64},
        "siglip": {"image_size": 64},
        "siglip2": {"num_patches": 16},
    }

    def tokenizer() -> transformers.PreTrainedTokenizerFast:
        vocabulary = {word: number for number, word in enumerate(words)}
        inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        inner.pre_tokenizer = pre_tokenizers.Whitespace()
        inner.post_processor = processors.TemplateProcessing(
            single="$A </s>", special_tokens=[("</s>", vocabulary["</s>"])]
        )
        return transformers.PreTrainedTokenizerFast(
            tokenizer_object=inner,
            pad_token="<pad>",
            unk_token="<unk>",
            eos_token="</s>",
            model_input_names=["input_ids"],  # as the published tokenizers of SigLIP
        )

    @functools.cache
    def folder(name: str) -> Path:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            config = transformers.AutoConfig.for_model(
                name, text_config=text, vision_config={**vision, **sizes[name]}
            )
            model = transformers.AutoModel.from_config(config)
            for tensor in model.state_dict().values():
                if tensor.is_floating_point():
                    tensor.add_(0.1 * torch.randn_like(tensor))
        made = tmp_path_factory.mktemp(name)
        model.save_pretrained(made)
        tokenizer().save_pretrained(made)
        return made

    return folder


@pytest.fixture(scope="session")
def _store() -> Iterator[Store]:
    with serve() as store:
        yield store


@pytest.fixture
def store(_store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Store]:
    """An S3 server on loopback with one bucket; it fails only where a test tells it to."""
    from semhitok import storage

    monkeypatch.setenv("AWS_ENDPOINT_URL", _store.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(storage, "PAUSE_S", 0.01)
    monkeypatch.setenv("SEMHITOK_CACHE", str(tmp_path / "cache"))
    place = storage.locate(f"s3://{BUCKET}")
    if not place.fs.exists(BUCKET):  # type: ignore[union-attr]
        place.fs.mkdir(BUCKET)  # type: ignore[union-attr]
    _store.heal()
    yield _store
    _store.heal()
