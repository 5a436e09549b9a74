"""Large pictures in tiles: each patch once and in its place, whole pictures as ever (C5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from semhitok.errors import IdError, RangeError
from semhitok.model import SemHiTok, Tiling, TokenizerConfig
from semhitok.model.tiles import TILING, Span, Tile, in_tiles, plan, spans

# 6 patches of 8 px a tile, 1 of them margin on either side.
SMALL = Tiling(whole=48, side=48, margin=8)


def noise(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(7))


# -- the plan --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("side", "margin"), [(1, 0), (2, 0), (3, 1), (7, 2), (16, 0), (96, 8)])
def test_an_axis_of_any_length_is_covered_once(side: int, margin: int) -> None:
    for length in [*range(1, 5 * side + 3), 1000]:
        parts = spans(length, side, margin)
        kept = [patch for part in parts for patch in range(part.first, part.last)]
        assert kept == list(range(length))
        for part in parts:
            assert part.stop - part.start == min(side, length)  # full-size, at the end too
            assert 0 <= part.start <= part.first < part.last <= part.stop <= length
            # Context on both sides, but where the picture ends.
            assert part.start == 0 or part.first - part.start >= margin
            assert part.stop == length or part.stop - part.last >= margin
        assert len(parts) == max(1, -(-(length - 2 * margin) // (side - 2 * margin)))  # no more


def test_what_fits_is_whole_and_the_next_patch_is_not() -> None:
    assert spans(6, 6, 1) == [Span(0, 6, 0, 6)]
    assert spans(7, 6, 1) == [Span(0, 6, 0, 3), Span(1, 7, 3, 7)]
    assert spans(12, 6, 1) == [Span(0, 6, 0, 5), Span(4, 10, 5, 8), Span(6, 12, 8, 12)]


@pytest.mark.parametrize("grid", [(1, 1), (6, 6), (7, 6), (3, 40), (25, 14), (6, 100)])
def test_a_grid_is_covered_once_by_tiles_of_one_shape(grid: tuple[int, int]) -> None:
    tiles = plan(grid, 8, SMALL)
    times = torch.zeros(grid, dtype=torch.int64)
    for tile in tiles:
        times[tile.rows.kept(), tile.columns.kept()] += 1
    assert times.eq(1).all()
    shapes = {times[tile.rows.seen(), tile.columns.seen()].shape for tile in tiles}
    assert shapes == {(min(6, grid[0]), min(6, grid[1]))}


def test_pixels_become_whole_patches() -> None:
    rows = [tile.rows for tile in plan((100, 1), 14, Tiling(whole=0, side=100, margin=15))]
    assert rows[0] == Span(0, 7, 0, 5)  # 7 patches fit in 100 px, and 15 px take 2


@pytest.mark.parametrize("patch_size", [8, 16])
def test_kodak_stays_whole_by_default(patch_size: int) -> None:
    assert len(plan((512 // patch_size, 768 // patch_size), patch_size)) == 1
    tall = plan((768 // patch_size, 128 // patch_size), patch_size)
    assert tall == [Tile(*(Span(0, n, 0, n) for n in (768 // patch_size, 128 // patch_size)))]
    # One patch more is tiles of 384 px, of which those with two neighbours keep 256.
    tiles = plan((128 // patch_size, 768 // patch_size + 1), patch_size)
    assert [tile.columns.start * patch_size for tile in tiles] == [0, 256, 384 + patch_size]


@pytest.mark.parametrize(("side", "margin"), [(16, 8), (7, 0), (24, 9), (48, -8), (0, 0)])
def test_tiles_that_keep_nothing_are_refused(
    tiny_tokenizer: SemHiTok, side: int, margin: int
) -> None:
    tiling = Tiling(whole=48, side=side, margin=margin)
    message = f"^tiles of {side} px with a margin of {margin} px keep nothing in patches of 8 px"
    with pytest.raises(RangeError, match=message):
        tiny_tokenizer.encode(noise(1, 3, 8, 8), tiling=tiling)
    with pytest.raises(RangeError, match=message):
        tiny_tokenizer.decode(torch.zeros(1, 1, 1, dtype=torch.int64), tiling=tiling)
    with pytest.raises(RangeError, match="^at_once is 0; it must be at least 1"):
        plan((1, 1), 8, Tiling(at_once=0))


# -- cutting and pasting ---------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [1, 2, 5, 1000])
@pytest.mark.parametrize("grid", [(13, 22), (7, 6), (4, 30)])
def test_every_value_comes_back_to_its_place(grid: tuple[int, int], at_once: int) -> None:
    """Down by the patch, up by it, and neither: all values differ, so one patch off would show."""
    tiling = dataclasses.replace(SMALL, at_once=at_once)
    ids = torch.arange(2 * grid[0] * grid[1]).view(2, *grid)
    pictures = ids.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, None]
    pictures = torch.stack([pictures[:, 0] * 3 + n for n in range(3)], dim=1)
    seen: list[int] = []

    def down(tiles: Tensor) -> Tensor:
        seen.append(len(tiles))
        return tiles[:, 0, ::8, ::8] // 3

    def up(tiles: Tensor) -> Tensor:
        wide = tiles.repeat_interleave(8, 1).repeat_interleave(8, 2)
        return torch.stack([wide * 3 + n for n in range(3)], dim=1)

    assert in_tiles(down, pictures, grid, 8, tiling).equal(ids)
    assert sum(seen) == 2 * len(plan(grid, 8, tiling)) and max(seen) <= at_once
    assert in_tiles(up, ids, grid, 8, tiling).equal(pictures)
    assert in_tiles(lambda tiles: tiles + 1, ids, grid, 8, tiling).equal(ids + 1)


def test_only_the_inner_parts_are_kept() -> None:
    """A rim of wrong values as wide as the margin, where tiles meet, leaves no trace."""
    grid = (25, 14)
    ids = torch.arange(grid[0] * grid[1]).view(1, *grid)

    def spoil(tiles: Tensor) -> Tensor:
        inside = torch.zeros_like(tiles)
        inside[:, 1:-1, 1:-1] = tiles[:, 1:-1, 1:-1]
        return inside

    assert in_tiles(spoil, ids, grid, 8, SMALL)[:, 1:-1, 1:-1].equal(ids[:, 1:-1, 1:-1])


def test_a_whole_batch_is_given_on_as_it_is() -> None:
    given: list[Tensor] = []
    x = noise(5, 3, 48, 40)
    in_tiles(lambda tiles: given.append(tiles) or tiles, x, (6, 5), 8, SMALL)  # type: ignore[func-returns-value]
    assert len(given) == 1 and given[0] is x


# -- the tokenizer ---------------------------------------------------------------------------------


def test_pictures_up_to_the_limit_are_the_same_to_the_bit(tiny_tokenizer: SemHiTok) -> None:
    """As without tiles: what `encode` and `decode` say in one go, written out."""
    x, tok = noise(3, 3, 48, 40), tiny_tokenizer
    assert tok.pixel.encoder is not None and tok.pixel.decoder is not None
    with torch.inference_mode():
        semantic = tok.semantic.encode(x, (6, 5))
        ids = tok.join(semantic, tok.pixel.codebook.search(tok.pixel.encoder(x), semantic))
        pictures = tok.pixel.decoder(tok.decoder_input(ids)).clamp(0, 1)
        features = tok.semantic.features(semantic)
    for tiling in (TILING, SMALL):
        assert tok.encode(x, tiling=tiling).equal(ids)
        assert tok.decode(ids, tiling=tiling).equal(pictures)
        told = tok.semantic_features(ids, tiling=tiling)
        assert told.equal(features) and told.stride() == features.stride()


@pytest.mark.parametrize(("height", "width"), [(104, 96), (56, 48), (24, 120)])
def test_large_pictures_are_their_windows_by_hand(
    tiny_tokenizer: SemHiTok, height: int, width: int
) -> None:
    tok, x = tiny_tokenizer, noise(2, 3, height, width)
    ids = tok.encode(x, tiling=SMALL)
    pictures = tok.decode(ids, tiling=SMALL)
    painted = tok.decode_semantics(ids, tiling=SMALL)
    told = tok.semantic_features(ids, tiling=SMALL)
    assert ids.shape == (2, height // 8, width // 8) and pictures.shape == x.shape
    for tile in plan((height // 8, width // 8), 8, SMALL):
        rows, columns = tile.rows, tile.columns
        kept = (..., rows.kept(), columns.kept())
        inner = (..., rows.inner(), columns.inner())
        own = tok.encode(x[..., rows.seen(8), columns.seen(8)])
        assert ids[kept].equal(own[inner])
        window = ids[:, rows.seen(), columns.seen()]
        own_told = tok.semantic_features(window)[:, rows.inner(), columns.inner()]
        assert torch.allclose(told[:, rows.kept(), columns.kept()], own_told, atol=1e-5)
        kept, inner = (..., rows.kept(8), columns.kept(8)), (..., rows.inner(8), columns.inner(8))
        assert torch.allclose(pictures[kept], tok.decode(window)[inner], atol=1e-5)
        assert torch.allclose(painted[kept], tok.decode_semantics(window)[inner], atol=1e-5)
    # What the tiles do not see counts: else this would pass without any.
    assert not pictures.equal(tok.decode(ids))


def test_ids_do_not_depend_on_how_many_tiles_go_at_once(tiny_tokenizer: SemHiTok) -> None:
    x = noise(3, 3, 104, 80)
    ids = tiny_tokenizer.encode(x, tiling=SMALL)
    for at_once in (2, 3, 7, 100):
        tiling = dataclasses.replace(SMALL, at_once=at_once)
        assert tiny_tokenizer.encode(x, tiling=tiling).equal(ids)
    alone = torch.cat([tiny_tokenizer.encode(one[None], tiling=SMALL) for one in x])
    assert alone.equal(ids)


def test_tiles_equal_the_whole_where_context_does_not_count(
    tiny_config: TokenizerConfig, make_tokenizer: Callable[..., SemHiTok]
) -> None:
    """No attention, no convolution at a finer scale: a patch's pixels and its code are its own."""
    blind = dataclasses.replace(tiny_config.pixel.encoder, depth=0)
    decoder = dataclasses.replace(
        tiny_config.pixel.decoder, transformer=blind, stage_widths=(), stage_depths=()
    )
    pixel = dataclasses.replace(tiny_config.pixel, encoder=blind, decoder=decoder)
    tok = make_tokenizer(dataclasses.replace(tiny_config, pixel=pixel))
    x = noise(2, 3, 104, 72)
    assert tok.pixel.encoder is not None
    for margin in (0, 8):
        tiling = Tiling(whole=48, side=48, margin=margin)
        latents = tok.pixel.encoder(x).movedim(-1, 1)

        def latents_of(tiles: Tensor) -> Tensor:
            assert tok.pixel.encoder is not None
            return tok.pixel.encoder(tiles).movedim(-1, 1)

        assert torch.allclose(in_tiles(latents_of, x, (13, 9), 8, tiling), latents, atol=1e-5)
        ids = tok.encode(x)
        assert torch.allclose(tok.decode(ids, tiling=tiling), tok.decode(ids), atol=1e-5)
        assert tok.decode(ids, tiling=tiling).sub(tok.decode(ids.roll(1, 2))).abs().max() > 0.1


def test_a_margin_that_covers_the_receptive_field_hides_the_tiles(
    tiny_config: TokenizerConfig, make_tokenizer: Callable[..., SemHiTok]
) -> None:
    """Convolutions reach two pixels of their scale: less than a patch, so one of margin does."""
    blind = dataclasses.replace(tiny_config.pixel.encoder, depth=0)
    decoder = dataclasses.replace(tiny_config.pixel.decoder, transformer=blind)
    pixel = dataclasses.replace(tiny_config.pixel, decoder=decoder)
    tok = make_tokenizer(dataclasses.replace(tiny_config, pixel=pixel))
    ids = torch.randint(64, (1, 13, 9), generator=torch.Generator().manual_seed(1))
    whole = tok.decode(ids)
    assert torch.allclose(tok.decode(ids, tiling=SMALL), whole, atol=1e-5)
    bare = tok.decode(ids, tiling=Tiling(whole=48, side=48, margin=0))
    assert not torch.allclose(bare, whole, atol=1e-3)


def test_a_bad_id_of_a_large_grid_is_named_by_its_place_in_the_grid(
    tiny_tokenizer: SemHiTok,
) -> None:
    ids = torch.zeros(1, 20, 30, dtype=torch.int64)
    ids[0, 19, 28] = 64
    for call in (
        tiny_tokenizer.decode,
        tiny_tokenizer.decode_semantics,
        tiny_tokenizer.semantic_features,
    ):
        with pytest.raises(IdError, match=r"^id 64 at \(0, 19, 28\) is outside"):
            call(ids, tiling=SMALL)


def test_an_empty_batch_of_large_grids(tiny_tokenizer: SemHiTok) -> None:
    ids = torch.zeros(0, 20, 30, dtype=torch.int64)
    assert tiny_tokenizer.decode(ids, tiling=SMALL).shape == (0, 3, 160, 240)


def test_all_of_a_loaded_model_takes_tiles(tiny_tokenizer: SemHiTok, tmp_path: Path) -> None:
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    x = noise(1, 3, 64, 64)
    ids = tiny_tokenizer.encode(x, tiling=SMALL)
    loaded = SemHiTok.from_pretrained(tmp_path / "model", parts=("encode",))
    assert loaded.encode(x, tiling=SMALL).equal(ids)
