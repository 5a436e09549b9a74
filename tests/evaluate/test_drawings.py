"""Squares of their class's colour under the judge itself, whose features tell colours apart."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, ImageError, NotFoundError
from semhitok.evaluate.drawings import Grader, class_names, sample_sheet
from semhitok.images import to_tensor

COLOURS = {"red": (220, 20, 20), "green": (20, 200, 40), "blue": (30, 40, 230)}


def square(label: int, seed: int) -> Image.Image:
    """Of 24 px, its colour with noise."""
    noise = np.random.default_rng(seed).integers(-15, 15, (24, 24, 3))
    colour = np.array(list(COLOURS.values())[label])
    return Image.fromarray((colour + noise).clip(0, 255).astype(np.uint8))


class Squares(ImageSource):
    def __init__(self, each: int, seed: int, names: list[str] | None = None) -> None:
        self.each, self.seed, self.names = each, seed, names or list(COLOURS)
        self.name = f"squares-{seed}"

    def __len__(self) -> int:
        return len(COLOURS) * self.each + 1

    def key(self, index: int) -> str:
        return f"{index}"

    def read_bytes(self, index: int) -> bytes | Path:
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        if index == len(self) - 1:
            raise ImageError(f"{index}: is broken")
        return square(index // self.each, 1000 * self.seed + index)

    def labels(self) -> np.ndarray:
        return np.array([*np.repeat(range(len(COLOURS)), self.each), 0])

    def class_names(self) -> list[str]:
        return self.names

    def _identity(self) -> Iterable[str]:
        return [self.name]


@pytest.fixture
def grader(shared: Path) -> Grader:
    return Grader(shared / "judges", Squares(8, 1), Squares(4, 2), to_tensor)


def test_right_and_wrong_colours(grader: Grader) -> None:
    labels = [n % 3 for n in range(9)]
    right = grader.grade([square(label, n) for n, label in enumerate(labels)], labels)
    assert right.figures["top1"]["mean"] == 1 and right.figures["pictures"] == 9
    assert min(right.own) > 0.8
    wrong = grader.grade([square((label + 1) % 3, n) for n, label in enumerate(labels)], labels)
    assert wrong.figures["top1"]["mean"] == 0 and wrong.figures["top5"]["mean"] == 1
    assert max(wrong.own) < 0.1
    photos = grader.grade_photos().figures
    assert photos["top1"]["mean"] == 1 and photos["pictures"] == 12


def test_distance_to_photos(grader: Grader) -> None:
    def distance(pictures: list[Image.Image]) -> float:
        graded = grader.grade(pictures, None)
        assert set(graded.figures) == {"pictures", "fd_judge"} and graded.own == []
        return float(graded.figures["fd_judge"])

    same = distance([square(n // 4, 2000 + n) for n in range(12)])  # the validation split itself
    alike = distance([square(n % 3, n) for n in range(12)])
    of_one_colour = distance([square(0, n) for n in range(12)])
    assert same == pytest.approx(0, abs=1e-3) and same < alike < of_one_colour


def test_protocol_and_broken_photos(grader: Grader) -> None:
    told = grader.describe()
    assert told["train"] == {
        "name": "squares-1", "pictures": 24, "failed": 1,
        "fingerprint": Squares(8, 1).fingerprint(),
    }  # fmt: skip
    assert told["classes"] == 3 and "no part in training" in told["judge"]
    assert grader.val.failed == {"12": "is broken"}


def test_what_cannot_be_graded(tmp_path: Path) -> None:
    other = Squares(4, 2, ["red", "green", "yellow"])
    with pytest.raises(DataError, match=r"have different classes \(blue\); give two splits"):
        class_names(Squares(8, 1), other)
    with pytest.raises(NotFoundError, match="squeezenet1_1.safetensors"):
        Grader(tmp_path, Squares(8, 1), Squares(4, 2), to_tensor)


def test_sheet_shows_the_best_first() -> None:
    asked: list[int] = []

    def picture(number: int) -> Image.Image:
        asked.append(number)
        return square(number % 3, number)

    sheet = sample_sheet(picture, ["red"] * 6, [0.1, 0.9, 0.5, 0.3, 0.7, 0.2])
    assert asked == [1, 4, 2, 3, 0, 5] and sheet.width > 192
