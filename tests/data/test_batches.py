"""Training batches: the same whatever happened before, and on any number of ranks."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from semhitok.data import batches
from semhitok.data.batches import DecodedPictures, TrainBatches
from semhitok.data.sources import ImageSource, open_source
from semhitok.errors import DataError, ImageError, RecipeError


class Pictures(ImageSource):
    """Seeded noise of many sizes; `bad` ones cannot be read; counts its readings."""

    name = "pictures"

    def __init__(self, count: int = 23, bad: Iterable[int] = ()) -> None:
        self.count, self.bad, self.readings = count, set(bad), 0

    def __len__(self) -> int:
        return self.count

    def key(self, index: int) -> str:
        return f"p{index}"

    def read_bytes(self, index: int) -> bytes:
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        self.readings += 1
        if index in self.bad:
            raise ImageError(f"p{index}: broken")
        random = np.random.default_rng(index)
        height, width = random.integers(5, 60, 2)
        return Image.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def _identity(self) -> Iterable[str]:
        return [str(self.count)]


def make(source: ImageSource | None = None, **changes: Any) -> TrainBatches:
    settings: dict[str, Any] = dict(crop=16, scale=(16, 40), batch_size=8, seed=3, enlarge=True)
    settings |= changes
    smallest, largest = settings.pop("scale")
    limit = {"cache_bytes": settings.pop("cache_bytes")} if "cache_bytes" in settings else {}
    pictures = DecodedPictures(Pictures() if source is None else source, largest, **limit)
    return TrainBatches(pictures, smallest=smallest, **settings)


def same(one: batches.Batch, two: batches.Batch) -> bool:
    return one.keys == two.keys and torch.equal(one.images, two.images)


def test_batches_have_the_promised_form() -> None:
    batch = make().batch(0)
    assert batch.images.shape == (8, 3, 16, 16) and batch.images.dtype == torch.float32
    assert batch.images.is_contiguous() and len(batch.keys) == 8
    assert 0 <= batch.images.min() and 0.9 < batch.images.max() <= 1


def test_a_step_needs_no_step_before_it() -> None:
    walked = list(make().iterate(0, 12))
    assert len(walked) == 12
    for step in (5, 11, 0):
        assert same(make().batch(step), walked[step])
    for resumed, batch in zip(make().iterate(7, 12), walked[7:], strict=True):
        assert same(resumed, batch)
    assert not same(make(seed=4).batch(5), walked[5])
    assert not torch.equal(make(source=Pictures(8)).batch(0).images, walked[0].images)


def test_every_picture_once_an_epoch_in_another_order() -> None:
    trained = make(Pictures(24))
    epochs = [[k for s in range(3 * e, 3 * e + 3) for k in trained.batch(s).keys] for e in (0, 1)]
    assert [len(set(keys)) for keys in epochs] == [24, 24]
    assert epochs[0] != epochs[1]


def test_a_batch_may_hold_several_epochs() -> None:
    assert len(set(make(Pictures(3)).batch(0).keys)) == 3


def test_ranks_together_make_the_batch() -> None:
    whole = make(world_size=1).batch(3)
    parts = [make(rank=rank, world_size=2).batch(3) for rank in (0, 1)]
    for rank, part in enumerate(parts):
        assert part.keys == whole.keys[rank::2]
        assert torch.equal(part.images, whole.images[rank::2])


@pytest.mark.parametrize("cache_bytes", [0, 20_000])
def test_the_cache_changes_nothing(cache_bytes: int) -> None:
    kept, other = make(), make(cache_bytes=cache_bytes)
    for step in range(9):
        assert same(kept.batch(step), other.batch(step))
    for step in range(9):
        assert same(kept.batch(step), make(cache_bytes=0).batch(step))
    assert kept.pictures.source.readings == 23  # type: ignore[attr-defined]
    assert other.pictures.source.readings > 40  # type: ignore[attr-defined]
    assert sum(p.nbytes for p in other.pictures._cache.values()) <= cache_bytes


def test_crops_are_cut_from_the_resized_picture() -> None:
    """Against the plain way: resize all of it, then crop."""
    source = Pictures(1)
    size = source.read(0).size
    assert min(size) > 20
    trained = make(source, scale=(20, 20), flip=False, batch_size=4)
    small = source.read(0).resize(tuple(round(s * 20 / min(size)) for s in size), 3)  # type: ignore[arg-type]
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1).float() / 255
    windows = pixels.unfold(1, 16, 1).unfold(2, 16, 1)
    for image in trained.batch(0).images:
        distance = (windows - image[:, None, None]).abs().amax(dim=(0, 3, 4))
        assert distance.min() == 0


def test_resized_crops_are_those_of_the_whole_within_a_level() -> None:
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (90, 131, 3), dtype=np.uint8)
    for size in ((67, 46), (262, 180), (100, 69)):
        whole = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        cut = batches._resized_crop(picture, size, (9, 5), 32)
        difference = np.abs(cut.astype(int) - whole[5:37, 9:41])
        assert difference.max() <= 1 and (difference == 0).mean() > 0.999


def test_scale_flip_and_place_vary() -> None:
    random_parts = make(Pictures(1), batch_size=64, crop=5, scale=(5, 40)).batch(0).images
    assert len({image.numpy().tobytes() for image in random_parts}) > 50
    still = make(Pictures(1), batch_size=64, crop=5, scale=(5, 5), flip=False)
    wide = max(Pictures(1).read(0).size) * 5 / min(Pictures(1).read(0).size)
    assert len({image.numpy().tobytes() for image in still.batch(0).images}) == round(wide) - 4


def test_flip_mirrors_half() -> None:
    plain = make(flip=False, batch_size=200).batch(0).images
    flipped = make(flip=True, batch_size=200).batch(0).images
    mirrored = [torch.equal(b, a.flip(-1)) for a, b in zip(plain, flipped, strict=True)]
    kept = [torch.equal(b, a) for a, b in zip(plain, flipped, strict=True)]
    assert sum(mirrored) + sum(kept) == 200 and 70 < sum(mirrored) < 130


def test_seeds_differ_in_their_crops_too() -> None:
    one, two = (make(Pictures(1), seed=seed).batch(0).images for seed in (1, 2))
    assert not torch.equal(one, two)


def test_pictures_are_not_enlarged_beyond_the_crop() -> None:
    array = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)

    class Small(Pictures):
        def read(self, index: int) -> Image.Image:
            return Image.fromarray(array)

    images = make(Small(1), flip=False).batch(0).images
    assert torch.equal(images, torch.from_numpy(array).permute(2, 0, 1).expand(8, -1, -1, -1) / 255)


def test_small_and_thin_pictures_are_enlarged() -> None:
    class Thin(Pictures):
        def read(self, index: int) -> Image.Image:
            return Image.new("RGB", ((1, 900), (900, 1), (3, 3))[index], "red")

    images = make(Thin(3), batch_size=6).batch(0).images
    assert torch.equal(images, torch.tensor([1.0, 0, 0])[:, None, None].expand(6, 3, 16, 16))


def test_broken_pictures_are_replaced_named_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    good, trained = make(), make(Pictures(bad=[4, 9, 10]))
    steps = list(trained.iterate(0, 9))
    assert trained.pictures.broken == {f"p{i}": f"p{i}: broken" for i in (4, 9, 10)}
    assert sorted(r.getMessage() for r in caplog.records) == [
        f"left out of training: p{i}: broken" for i in (10, 4, 9)
    ]
    for step in range(9):
        assert same(steps[step], make(Pictures(bad=[4, 9, 10])).batch(step))
        whole = good.batch(step)
        assert not {"p4", "p9", "p10"} & set(steps[step].keys)
        for row, key in enumerate(whole.keys):
            if key not in trained.pictures.broken:
                assert steps[step].keys[row] == key
                assert torch.equal(steps[step].images[row], whole.images[row])


def test_nothing_readable_is_an_error() -> None:
    with pytest.raises(DataError, match="pictures: not one of 5 pictures can be read; p"):
        make(Pictures(5, bad=range(5))).batch(0)
    with pytest.raises(DataError, match="no pictures to train on"):
        make(Pictures(0))


def test_errors_of_workers_reach_the_caller_and_threads_end() -> None:
    class Failing(Pictures):
        def read(self, index: int) -> Image.Image:
            raise KeyError("a defect")

    with pytest.raises(KeyError, match="a defect"):
        next(iter(make(Failing()).iterate(0, 5)))
    steps = make().iterate(0, 1000)
    next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert not [t for t in threading.enumerate() if t.name.startswith("batches")]


@pytest.mark.parametrize(
    "changes",
    [
        dict(crop=0, scale=(0, 4)),
        dict(crop=16, scale=(8, 40)),
        dict(scale=(40, 16)),
        dict(batch_size=0),
        dict(batch_size=9, world_size=2),
        dict(rank=2, world_size=2),
        dict(rank=-1),
        dict(threads=0),
        dict(seed=-1),
    ],
)
def test_impossible_settings(changes: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        make(**changes)


@pytest.mark.shared
def test_photos(shared: Path) -> None:
    source = open_source(shared / "data" / "tiny-imagenet-val.parquet")
    trained = make(source, crop=64, scale=(64, 64), batch_size=4)
    batch = trained.batch(1)
    for image, key in zip(batch.images, batch.keys, strict=True):
        photo = np.array(source.read(int(key.split(":")[1])))
        whole = torch.from_numpy(photo).permute(2, 0, 1).float() / 255
        assert torch.equal(image, whole) or torch.equal(image, whole.flip(-1))


def test_small_pictures_are_passed_over_unless_they_are_to_be_enlarged() -> None:
    large = {f"p{i}" for i in range(23) if min(np.random.default_rng(i).integers(5, 60, 2)) >= 16}
    assert 0 < len(large) < 23
    seen = {key for step in range(6) for key in make(enlarge=False).batch(step).keys}
    assert seen == large
    with pytest.raises(DataError, match="all of 23 readable pictures are smaller than the crop of"):
        make(crop=60, scale=(60, 60), enlarge=False).batch(0)
