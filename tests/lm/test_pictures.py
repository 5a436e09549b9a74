from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from semhitok.errors import IdError, ImageError, NotFoundError, RangeError, ShapeError
from semhitok.lm.processor import UnifiedProcessor

Make = Callable[..., UnifiedProcessor]
OTHER = torch.tensor([[1, 2], [3, 4]])


def grid_in(processor: UnifiedProcessor, picture: object) -> Tensor:
    (grid,) = processor.pictures.grids([picture])  # type: ignore[list-item]
    return grid


def test_pictures_of_all_kinds_are_one(
    make_processor: Make, images: Tensor, tmp_path: Path
) -> None:
    processor = make_processor()
    wanted = processor.tokenizer.encode(images[:1].mul(255).round().div(255))[0]
    pixels = images[0].permute(1, 2, 0).mul(255).round().to(torch.uint8).numpy()
    path = tmp_path / "0.png"
    Image.fromarray(pixels).save(path)
    whole = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    for picture in (path, str(path), path.read_bytes(), Image.open(path), pixels, whole, wanted):
        assert torch.equal(grid_in(processor, picture), wanted)


def test_sizes(make_processor: Make) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (50, 90, 3), dtype=np.uint8)
    for size, shape in ((None, (4, 4)), (48, (6, 6)), ((2, 5), (2, 5)), ((8, 1), (8, 1))):
        assert grid_in(make_processor(size=size), photo).shape == shape
    exact = np.random.default_rng(0).integers(0, 256, (16, 40, 3), dtype=np.uint8)
    processor = make_processor(size=(2, 5))
    as_it_is = processor.tokenizer.preprocess(exact, size="native", crop="grid")
    assert torch.equal(grid_in(processor, exact), processor.tokenizer.encode(as_it_is)[0])
    with pytest.raises(RangeError, match="size is 30"):
        make_processor(size=30)
    with pytest.raises(RangeError, match="picture of 9x9 patches; sides from 1 to 8"):
        make_processor(size=72)


@pytest.mark.parametrize(
    ("picture", "kind", "said"),
    [
        (torch.tensor([[64]]), IdError, r"id 64 at \(0, 0\) is outside the image block, \[0, 64\)"),
        (torch.zeros(1, 9).long(), RangeError, "picture of 1x9 patches; sides from 1 to 8"),
        (torch.zeros(3, 30, 32), ShapeError, "image is 30x32; both sides must be multiples"),
        (torch.zeros(3, 80, 32), RangeError, "picture of 10x4 patches"),
        (torch.zeros(3, 32, 32) + 2, RangeError, r"float32 in \[0, 1\] is needed"),
        (torch.zeros(1, 3, 32, 32), ShapeError, r"\(1, 3, 32, 32\); a grid of ids is \(h, w\)"),
        (b"no picture", ImageError, "10 bytes"),
        (Path("nowhere.png"), NotFoundError, "nowhere.png: no such file"),
    ],
)
def test_pictures_that_cannot_be_used(
    make_processor: Make, as_installed: None, picture: object, kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind, match=said):
        make_processor().pictures.grids([picture])  # type: ignore[list-item]


def test_a_picture_that_comes_twice_is_encoded_once(
    make_processor: Make, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    processor = make_processor()
    encode, given = processor.tokenizer.encode, []
    monkeypatch.setattr(processor.tokenizer, "encode", lambda x: given.append(len(x)) or encode(x))
    a, b = images[0], images[1]
    found = processor.pictures.try_grids([a, b, OTHER, a])
    assert given == [2]
    assert torch.equal(found[0], encode(images[:1])[0]) and torch.equal(found[0], found[3])
