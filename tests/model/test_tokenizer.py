"""Pictures to ids and back: ids (C1), frozen semantics (C3), same ids (C5), messages."""

from __future__ import annotations

import copy
import dataclasses
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semhitok.errors import FormatError, IdError, NotFoundError, RangeError, ShapeError
from semhitok.model import SemHiTok, TokenizerConfig
from semhitok.model.config import PixelDecoderConfig
from semhitok.model.tokenizer import tensors_hash


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def enhanced(tiny_config: TokenizerConfig, make_tokenizer: Callable[..., SemHiTok]) -> SemHiTok:
    enhance = PixelDecoderConfig(transformer=tiny_config.pixel.decoder.transformer)
    pixel = dataclasses.replace(tiny_config.pixel, enhance=enhance)
    return make_tokenizer(dataclasses.replace(tiny_config, pixel=pixel))


# -- ids -------------------------------------------------------------------------------------------


def test_split_and_join_are_inverse_over_the_whole_vocabulary(tiny_tokenizer: SemHiTok) -> None:
    ids = torch.arange(tiny_tokenizer.vocab_size)
    semantic, pixel = tiny_tokenizer.split(ids)
    assert tiny_tokenizer.join(semantic, pixel).equal(ids)
    assert semantic.equal(torch.arange(16).repeat_interleave(4))  # id = i * m + j
    assert pixel.equal(torch.arange(4).repeat(16))
    assert tiny_tokenizer.vocab_size == 64 and tiny_tokenizer.patch_size == 8
    again = tiny_tokenizer.split(tiny_tokenizer.join(semantic, pixel))
    assert again[0].equal(semantic) and again[1].equal(pixel)


@pytest.mark.parametrize("shape", [(), (0,), (64,), (2, 3, 4), (2, 1, 3, 4)])
def test_split_and_join_take_any_shape(tiny_tokenizer: SemHiTok, shape: tuple[int, ...]) -> None:
    ids = torch.full(shape, 42)
    semantic, pixel = tiny_tokenizer.split(ids)
    assert semantic.shape == pixel.shape == shape
    assert tiny_tokenizer.join(semantic, pixel).equal(ids)


@pytest.mark.parametrize("bad", [-1, 64, 1 << 40])
def test_ids_outside_are_named_with_range_and_place(tiny_tokenizer: SemHiTok, bad: int) -> None:
    ids = torch.zeros(2, 3, 4, dtype=torch.int64)
    ids[1, 2, 0] = bad
    message = rf"^id {bad} at \(1, 2, 0\) is outside \[0, 64\); tiny-random has 64 of them"
    for call in (tiny_tokenizer.split, tiny_tokenizer.decode, tiny_tokenizer.features):
        with pytest.raises(IdError, match=message):
            call(ids)
    with pytest.raises(IdError, match=message):
        tiny_tokenizer.semantic_features(ids)


def test_codes_outside_are_named(tiny_tokenizer: SemHiTok) -> None:
    zeros = torch.zeros(5, dtype=torch.int64)
    far = zeros.clone()
    far[3] = 16
    with pytest.raises(IdError, match=r"^semantic code 16 at \(3,\) is outside \[0, 16\)"):
        tiny_tokenizer.join(far, zeros)
    far[3] = 4
    with pytest.raises(IdError, match=r"^pixel code 4 at \(3,\) is outside \[0, 4\)"):
        tiny_tokenizer.join(zeros, far)
    far[3] = -2
    with pytest.raises(IdError, match=r"^pixel code -2 at \(3,\)"):
        tiny_tokenizer.join(zeros, far)


@pytest.mark.usefixtures("as_installed")
def test_ids_of_another_dtype_or_shape(tiny_tokenizer: SemHiTok) -> None:
    with pytest.raises(IdError, match=r"^ids are torch.int32; int64 is needed: use .long\(\)"):
        tiny_tokenizer.decode(torch.zeros(1, 2, 2, dtype=torch.int32))
    with pytest.raises(IdError, match="^ids are torch.float32"):
        tiny_tokenizer.split(torch.zeros(4))
    with pytest.raises(IdError, match="^pixel codes are torch.uint8"):
        tiny_tokenizer.join(torch.zeros(4).long(), torch.zeros(4, dtype=torch.uint8))
    for call in (tiny_tokenizer.decode, tiny_tokenizer.features):
        with pytest.raises(ShapeError, match=r"^ids have shape \(2, 2\); \(b, h, w\) is needed"):
            call(torch.zeros(2, 2, dtype=torch.int64))


# -- encode and decode -----------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(32, 32), (8, 8), (24, 56), (64, 16)])
def test_any_multiples_of_the_patch(tiny_tokenizer: SemHiTok, height: int, width: int) -> None:
    ids = tiny_tokenizer.encode(noise(2, 3, height, width))
    assert ids.shape == (2, height // 8, width // 8) and ids.dtype == torch.int64
    images = tiny_tokenizer.decode(ids)
    assert images.shape == (2, 3, height, width) and images.dtype == torch.float32
    assert 0 <= float(images.min()) and float(images.max()) <= 1


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40)])
def test_decoded_ids_are_the_pictures_of_forward_clamped(
    tiny_tokenizer: SemHiTok, height: int, width: int
) -> None:
    x = noise(4, 3, height, width)
    with torch.no_grad():
        out = tiny_tokenizer(x)
    assert float(out.images.min()) < 0 and float(out.images.max()) > 1  # else clamping shows not
    ids = tiny_tokenizer.encode(x)
    assert ids.equal(tiny_tokenizer.join(out.semantic, out.pixel.indices))
    assert tiny_tokenizer.decode(ids).equal(out.images.clamp(0, 1))  # bit for bit
    assert out.latents.shape == (4, height // 8, width // 8, 6)


def test_most_of_the_vocabulary_is_in_use(tiny_tokenizer: SemHiTok) -> None:
    """Else the tests of equal ids would pass on constants."""
    ids = tiny_tokenizer.encode(noise(33, 3, 32, 32))
    assert len(ids.unique()) > 40


def test_same_ids_in_any_batch_and_at_any_place(tiny_tokenizer: SemHiTok) -> None:
    x = noise(33, 3, 32, 32)
    ids = tiny_tokenizer.encode(x)
    for n in range(1, 34):
        assert tiny_tokenizer.encode(x[:n]).equal(ids[:n])
        assert tiny_tokenizer.encode(x[-n:]).equal(ids[-n:])
    order = torch.randperm(33, generator=torch.Generator().manual_seed(0))
    assert tiny_tokenizer.encode(x[order]).equal(ids[order])
    alone = torch.cat([tiny_tokenizer.encode(one[None]) for one in x])
    assert alone.equal(ids)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (96, 96), (40, 72)])
def test_pixel_latents_are_the_same_bits_alone_and_in_a_batch(
    tiny_tokenizer: SemHiTok, height: int, width: int
) -> None:
    """At one thread; ids could hide it for long."""
    encoder, x = tiny_tokenizer.pixel.encoder, noise(9, 3, height, width)
    assert encoder is not None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            whole = encoder(x)
            assert all(encoder(x[:n]).equal(whole[:n]) for n in range(1, 10))
    finally:
        torch.set_num_threads(threads)


def test_same_ids_for_pictures_laid_out_otherwise(tiny_tokenizer: SemHiTok) -> None:
    x = noise(3, 3, 32, 48)
    ids = tiny_tokenizer.encode(x)
    assert tiny_tokenizer.encode(x.contiguous(memory_format=torch.channels_last)).equal(ids)
    assert tiny_tokenizer.encode(x.flip(3).flip(3)[:, :, :32]).equal(ids)


def test_autocast_and_training_mode_change_nothing(tiny_tokenizer: SemHiTok) -> None:
    x = noise(3, 3, 32, 32)
    ids = tiny_tokenizer.encode(x)
    pictures = tiny_tokenizer.decode(ids)
    told = tiny_tokenizer.semantic_features(ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert tiny_tokenizer.encode(x).equal(ids)
        assert tiny_tokenizer.decode(ids).equal(pictures)
        assert tiny_tokenizer.semantic_features(ids).equal(told)
    tiny_tokenizer.train()
    assert tiny_tokenizer.encode(x).equal(ids)


def test_everything_works_in_inference_mode(tiny_tokenizer: SemHiTok) -> None:
    x = noise(2, 3, 32, 32)
    expected = tiny_tokenizer.encode(x)
    with torch.inference_mode():
        ids = tiny_tokenizer.encode(x.clone())
        tiny_tokenizer.decode(ids)
        tiny_tokenizer.decode_semantics(ids)
        tiny_tokenizer.features(ids)
        tiny_tokenizer.semantic_features(ids)
        assert tiny_tokenizer.join(*tiny_tokenizer.split(ids)).equal(expected)


def test_calls_leave_no_state_behind(tiny_tokenizer: SemHiTok) -> None:
    before = tiny_tokenizer.hash
    first = tiny_tokenizer.encode(noise(1, 3, 32, 32))
    tiny_tokenizer.decode(tiny_tokenizer.encode(noise(5, 3, 16, 64)))
    tiny_tokenizer.semantic_features(tiny_tokenizer.encode(noise(2, 3, 64, 16)))
    assert tiny_tokenizer.encode(noise(1, 3, 32, 32)).equal(first)
    assert tiny_tokenizer.hash == before


def test_pictures_decode_the_same_alone_and_in_a_batch(tiny_tokenizer: SemHiTok) -> None:
    ids = torch.randint(64, (5, 4, 6), generator=torch.Generator().manual_seed(1))
    together = tiny_tokenizer.decode(ids)
    alone = torch.cat([tiny_tokenizer.decode(one[None]) for one in ids])
    assert torch.allclose(alone, together, atol=1e-5)


def test_features_are_the_code_vectors(tiny_tokenizer: SemHiTok) -> None:
    dim = tiny_tokenizer.config.semantic.teacher.dim
    ids = tiny_tokenizer.encode(noise(2, 3, 16, 24))
    features = tiny_tokenizer.features(ids)
    semantic, pixel = tiny_tokenizer.split(ids)
    assert features.shape == (2, 2, 3, dim + 6)
    assert features[..., :dim].equal(tiny_tokenizer.semantic.codebook.codes[semantic])
    table = tiny_tokenizer.pixel.codebook.table()
    assert features[..., dim:].equal(table[semantic, pixel])
    told = tiny_tokenizer.semantic_features(ids)
    assert told.shape == (2, 2, 3, dim) and told.dtype == torch.float32
    other = tiny_tokenizer.join(semantic, (pixel + 1) % 4)
    assert tiny_tokenizer.semantic_features(other).equal(told)  # by the semantic codes alone


def test_decode_semantics_forgets_the_pixel_codes(tiny_tokenizer: SemHiTok) -> None:
    ids = tiny_tokenizer.encode(noise(2, 3, 16, 24))
    semantic, pixel = tiny_tokenizer.split(ids)
    other = tiny_tokenizer.join(semantic, (pixel + 1) % 4)
    painted = tiny_tokenizer.decode_semantics(ids)
    assert painted.equal(tiny_tokenizer.decode_semantics(other))
    assert painted.shape == (2, 3, 16, 24)
    assert not painted.equal(tiny_tokenizer.decode(ids))
    codebook = tiny_tokenizer.pixel.codebook
    with torch.no_grad():  # where each code is the typical one, the pixel codes say nothing
        codebook.base.zero_()
        codebook.free_offsets("test").weight.copy_(codebook.typical[:, None])
    assert torch.allclose(tiny_tokenizer.decode_semantics(ids), tiny_tokenizer.decode(ids))


def test_the_best_decoder_is_the_default(enhanced: SemHiTok) -> None:
    ids = torch.arange(16).view(1, 4, 4)
    best = enhanced.decode(ids)
    assert best.equal(enhanced.decode(ids, decoder="enhance"))
    assert not best.equal(enhanced.decode(ids, decoder="pixel"))


@pytest.mark.usefixtures("as_installed")
def test_decoders_that_are_not_there(tiny_tokenizer: SemHiTok) -> None:
    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    assert tiny_tokenizer.decode(ids).equal(tiny_tokenizer.decode(ids, decoder="pixel"))
    message = "^tiny-random has no decoder 'enhance'; it has: 'pixel'"
    with pytest.raises(NotFoundError, match=message):
        tiny_tokenizer.decode(ids, decoder="enhance")


# -- wrong pictures --------------------------------------------------------------------------------


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3), (0, 3, 32, 32), (1, 3, 0, 8)]
)
def test_pictures_of_wrong_shape(tiny_tokenizer: SemHiTok, shape: tuple[int, ...]) -> None:
    message = rf"^images have shape {re.escape(str(shape))}; \(b, 3, height, width\) is needed"
    with pytest.raises(ShapeError, match=message):
        tiny_tokenizer.encode(torch.zeros(shape))


@pytest.mark.parametrize(("height", "width"), [(33, 32), (32, 20), (4, 32)])
def test_sides_that_are_no_multiples(tiny_tokenizer: SemHiTok, height: int, width: int) -> None:
    message = f"^image is {height}x{width}; both sides must be multiples of patch_size 8"
    for call in (tiny_tokenizer.encode, tiny_tokenizer):
        with pytest.raises(ShapeError, match=message):
            call(noise(1, 3, height, width))


@pytest.mark.usefixtures("as_installed")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float16, torch.float64])
def test_pictures_of_wrong_dtype(tiny_tokenizer: SemHiTok, dtype: torch.dtype) -> None:
    with pytest.raises(RangeError, match=rf"^images are {dtype}; float32 in \[0, 1\] is needed"):
        tiny_tokenizer.encode(torch.zeros(1, 3, 32, 32, dtype=dtype))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (255.0, r"^images range from .* to 255; \[0, 1\] is needed: divide 8-bit values by 255"),
        (1.0001, r"^images range from .* to 1.0001;"),
        (-0.5, r"^images range from -0.5 to"),
        (float("nan"), r"^images range from nan to nan;"),
        (float("inf"), r"^images range from .* to inf;"),
    ],
)
def test_pictures_out_of_range(tiny_tokenizer: SemHiTok, value: float, message: str) -> None:
    x = noise(2, 3, 16, 16) / 2
    x[1, 2, 3, 4] = value
    with pytest.raises(RangeError, match=message):
        tiny_tokenizer.encode(x)


def test_the_ends_of_the_range_are_allowed(tiny_tokenizer: SemHiTok) -> None:
    tiny_tokenizer.encode(torch.zeros(1, 3, 16, 16))
    tiny_tokenizer.encode(torch.ones(1, 3, 16, 16))


# -- preprocess ------------------------------------------------------------------------------------


def test_preprocess_takes_path_bytes_picture_and_array(
    tiny_tokenizer: SemHiTok, tmp_path: Path
) -> None:
    pixels = (noise(40, 60, 3) * 255).byte().numpy()
    picture = Image.fromarray(pixels)
    file = io.BytesIO()
    picture.save(file, "PNG")
    path = tmp_path / "p.png"
    path.write_bytes(file.getvalue())
    first = tiny_tokenizer.preprocess(picture)
    assert first.shape == (1, 3, 32, 32) and first.dtype == torch.float32
    for one in (path, str(path), file.getvalue(), np.asarray(picture)):
        assert tiny_tokenizer.preprocess(one).equal(first)
    assert tiny_tokenizer.preprocess([picture, path]).equal(first.repeat(2, 1, 1, 1))
    native = tiny_tokenizer.preprocess(picture, size="native", crop="grid")
    assert native.shape == (1, 3, 40, 56)
    assert native[0].permute(1, 2, 0).mul(255).round().byte().numpy().shape == (40, 56, 3)
    assert tiny_tokenizer.preprocess(picture, size=16).shape == (1, 3, 16, 16)
    tiny_tokenizer.encode(first)


def test_pictures_that_come_out_in_several_sizes(tiny_tokenizer: SemHiTok) -> None:
    pictures = [Image.new("RGB", (64, 64)), Image.new("RGB", (64, 32))]
    assert tiny_tokenizer.preprocess(pictures).shape == (2, 3, 32, 32)
    with pytest.raises(ShapeError, match="^pictures come out in 2 sizes .* use crop='square'"):
        tiny_tokenizer.preprocess(pictures, crop="grid")


# -- gradients -------------------------------------------------------------------------------------


def test_pixel_losses_never_reach_the_semantic_branch(tiny_tokenizer: SemHiTok) -> None:
    model = tiny_tokenizer.requires_grad_(True).train()  # even where somebody asks for it
    x = noise(4, 3, 32, 32)
    before = {n: t.clone() for n, t in model.semantic.state_dict().items()}
    digest, semantic = model.semantic_hash, model.split(model.encode(x))[0]
    out = model(x)
    loss = (out.images - x).square().mean()
    (loss + out.pixel.commitment_loss + out.pixel.codebook_loss).backward()
    assert all(p.grad is None for p in model.semantic.parameters())
    missed = [n for n, p in model.pixel.named_parameters() if p.grad is None]
    assert not missed
    learning = [p for p in model.parameters() if p.grad is not None]
    torch.optim.AdamW(learning, lr=0.1, weight_decay=0.1).step()
    assert all(t.equal(before[n]) for n, t in model.semantic.state_dict().items())
    assert model.semantic_hash == digest
    after = model.encode(x)
    assert model.split(after)[0].equal(semantic)
    assert not model.decode(after).equal(out.images.detach().clamp(0, 1))  # the step did move


def test_the_picture_trains_encoder_and_decoder_and_no_code(tiny_tokenizer: SemHiTok) -> None:
    tiny_tokenizer(noise(2, 3, 32, 32)).images.square().sum().backward()
    pixel = tiny_tokenizer.pixel
    assert pixel.encoder is not None and pixel.decoder is not None
    for module in (pixel.encoder, pixel.decoder):
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())
    assert all(p.grad is None for p in pixel.codebook.parameters())


# -- identity --------------------------------------------------------------------------------------


def test_hash_changes_with_any_weight(tiny_tokenizer: SemHiTok) -> None:
    first = tiny_tokenizer.hash
    assert re.fullmatch("[0-9a-f]{64}", first) and copy.deepcopy(tiny_tokenizer).hash == first
    seen = {first}
    for tensor in tiny_tokenizer.state_dict().values():
        with torch.no_grad():
            kept = tensor.flatten()[-1].clone()
            last = tensor.view(-1)[-1:]
            last.add_(1)
            seen.add(tiny_tokenizer.hash)
            last.copy_(kept)
    assert tiny_tokenizer.hash == first
    assert len(seen) == 1 + len(tiny_tokenizer.state_dict())


def test_hash_changes_with_the_config(tiny_tokenizer: SemHiTok) -> None:
    first = tiny_tokenizer.hash
    config = tiny_tokenizer.config
    tiny_tokenizer.config = dataclasses.replace(config, image_size=64)
    assert tiny_tokenizer.hash != first
    teacher = dataclasses.replace(config.semantic.teacher, mean=(0.4, 0.5, 0.5))
    tiny_tokenizer.config = dataclasses.replace(
        config, semantic=dataclasses.replace(config.semantic, teacher=teacher)
    )
    assert tiny_tokenizer.hash != first


def test_hash_does_not_depend_on_the_stored_dtype() -> None:
    values = torch.tensor([[0.5, -2.0], [1.25, 0.0]])
    first = tensors_hash({"a": values, "b": torch.tensor(3)})
    assert tensors_hash({"b": torch.tensor(3), "a": values.half()}) == first
    assert tensors_hash({"a": values.T.contiguous().T, "b": torch.tensor(3)}) == first
    assert tensors_hash({"a": values.flatten(), "b": torch.tensor(3)}) != first  # the shape counts
    assert tensors_hash({"c": values, "b": torch.tensor(3)}) != first  # and the name
    assert tensors_hash({"a": values, "b": torch.tensor(3)}, b"config") != first


def test_semantic_hash_is_of_the_semantic_branch_alone(tiny_tokenizer: SemHiTok) -> None:
    first = tiny_tokenizer.semantic_hash
    with torch.no_grad():
        for parameter in tiny_tokenizer.pixel.parameters():
            parameter.add_(1)
    assert tiny_tokenizer.semantic_hash == first
    tiny_tokenizer.semantic.codebook.codes[0, 0] += 1
    assert tiny_tokenizer.semantic_hash != first


# -- parts -----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny_tokenizer: SemHiTok, tmp_path: Path) -> Path:
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_parts_do_what_the_whole_does(tiny_tokenizer: SemHiTok, folder: Path) -> None:
    x = noise(2, 3, 32, 32)
    ids = SemHiTok.from_pretrained(folder, parts=("encode",)).encode(x)
    assert ids.equal(tiny_tokenizer.encode(x))
    decoder = SemHiTok.from_pretrained(folder, parts=("decode",))
    assert decoder.decode(ids).equal(tiny_tokenizer.decode(ids))
    assert decoder.features(ids).equal(tiny_tokenizer.features(ids))
    teller = SemHiTok.from_pretrained(folder, parts=("features",))
    assert teller.semantic_features(ids).equal(tiny_tokenizer.semantic_features(ids))
    assert sum(p.numel() for p in decoder.parameters()) < sum(
        p.numel() for p in tiny_tokenizer.parameters()
    )


def test_parts_that_were_not_loaded_are_named(folder: Path) -> None:
    decoder = SemHiTok.from_pretrained(folder, parts=("decode",))
    ids = torch.zeros(1, 2, 2, dtype=torch.int64)
    message = (
        r"^tiny-random was loaded for \['decode'\]; this needs 'encode': from_pretrained\(\.\.\."
    )
    with pytest.raises(FormatError, match=message):
        decoder.encode(noise(1, 3, 16, 16))
    with pytest.raises(FormatError, match=message):
        decoder(noise(1, 3, 16, 16))
    with pytest.raises(FormatError, match="this needs 'features'"):
        decoder.semantic_features(ids)
    encoder = SemHiTok.from_pretrained(folder, parts=("encode",))
    with pytest.raises(FormatError, match="this needs 'decode'"):
        encoder.decode(ids)


def test_decoding_needs_no_transformers(folder: Path) -> None:
    code = (
        "import sys, torch\n"
        "from semhitok import SemHiTok\n"
        "tok = SemHiTok.from_pretrained(sys.argv[1], parts=('decode',))\n"
        "assert tok.decode(torch.arange(6).view(1, 2, 3)).shape == (1, 3, 16, 24)\n"
        "print([m for m in ('transformers', 'huggingface_hub', 'PIL') if m in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, env=os.environ
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# ----------------------------------------------------------------------------------- precision


def test_bfloat16_is_close_and_only_when_asked_for(
    tiny_tokenizer: SemHiTok, images: torch.Tensor
) -> None:
    ids = tiny_tokenizer.encode(images)
    pictures = tiny_tokenizer.decode(ids)
    with torch.autocast("cpu", torch.bfloat16):  # the caller's own makes no difference
        assert tiny_tokenizer.encode(images).equal(ids)
        assert tiny_tokenizer.decode(ids).equal(pictures)
    latents = tiny_tokenizer.semantic.latents(images, (4, 4))
    before = tiny_tokenizer.hash
    assert tiny_tokenizer.set_precision(torch.bfloat16) is tiny_tokenizer
    assert tiny_tokenizer.hash == before
    reduced = tiny_tokenizer.semantic.latents(images, (4, 4))
    assert reduced.dtype == torch.float32 and not reduced.equal(latents)
    torch.testing.assert_close(reduced, latents, atol=0.05, rtol=0.0)
    assert (tiny_tokenizer.encode(images) == ids).float().mean() > 0.5
    painted = tiny_tokenizer.decode(ids)
    assert painted.dtype == torch.float32 and not painted.equal(pictures)
    torch.testing.assert_close(painted, pictures, atol=0.05, rtol=0.0)
    tiny_tokenizer.set_precision(torch.float32)
    assert tiny_tokenizer.encode(images).equal(ids)


def test_other_precisions_are_refused(tiny_tokenizer: SemHiTok) -> None:
    with pytest.raises(RangeError, match="precision is torch.float16; allowed: float32, bfloat16"):
        tiny_tokenizer.set_precision(torch.float16)
