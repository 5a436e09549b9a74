"""The folder of a report: what is in it, and that the pictures are those that it says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from semhitok.data.sources import ImageSource
from semhitok.errors import ImageError, StorageError
from semhitok.evaluate import folder as folder_module
from semhitok.evaluate.adapters import Adapter
from semhitok.evaluate.folder import extremes, ranked_by, ranking, write_folder
from semhitok.evaluate.metrics import psnr
from semhitok.evaluate.reconstruction import evaluate
from semhitok.evaluate.report import Comparison, Report
from semhitok.images import ImagePolicy, to_pil, to_tensor
from semhitok.model.lpips import ENVIRONMENT_VARIABLE

SPOILED = 5
POLICY = ImagePolicy(size=32, crop="square", multiple=1)
Row = list[tuple[Image.Image, str]]


class Photos(ImageSource):
    """Seeded smooth pictures in memory; the one at `broken` cannot be read."""

    name = "photos"

    def __init__(self, count: int, broken: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(count, 3, 5, 5, generator=generator)
        fine = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
        self.pictures, self.broken = list(map(to_pil, fine)), broken

    def __len__(self) -> int:
        return len(self.pictures)

    def key(self, index: int) -> str:
        return f"photo|{index}.png"

    def read_bytes(self, index: int) -> bytes:
        raise NotImplementedError

    def read(self, index: int) -> Image.Image:
        if index == self.broken:
            raise ImageError("broken picture")
        return self.pictures[index]

    def _identity(self) -> Iterable[str]:
        return [str(len(self))]


class Spoiler(Adapter):
    """Gives all pictures back a little darker, and one of them as its negative."""

    def __init__(self, spoiled: Image.Image, name: str = "spoiler") -> None:
        self.spoiled, self.name = to_tensor(spoiled), name

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, encoded: torch.Tensor) -> torch.Tensor:
        return torch.stack([1 - x if x.equal(self.spoiled) else 0.9 * x for x in encoded])

    def bits(self, encoded: torch.Tensor) -> list[float]:
        return [1.0] * len(encoded)


class Codes(Spoiler):
    """One that has codes: bright or not, and how much red of four."""

    def codes(self, encoded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = torch.nn.functional.avg_pool2d(encoded, 8)
        red = small[:, 0].mul(3.99).long()
        return (small.mean(dim=1) > 0.5).long(), red

    def codebook_sizes(self) -> tuple[int, int]:
        return 2, 4


@pytest.fixture(autouse=True)
def no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def sheets(monkeypatch: pytest.MonkeyPatch) -> list[list[Row]]:
    """The rows of each contact sheet that is made, in order."""
    made: list[list[Row]] = []
    real: Callable[..., Image.Image] = folder_module.contact_sheet

    def record(rows: Any) -> Image.Image:
        made.append(rows)
        return real(rows)

    monkeypatch.setattr(folder_module, "contact_sheet", record)
    return made


def report_of(values: list[float], name: str = "psnr_db") -> Report:
    return Report({}, {}, {"key": list(map(str, range(len(values)))), name: values})


def measured(source: ImageSource, *adapters: Adapter) -> Comparison:
    return Comparison([evaluate(each, source, resolution=32) for each in adapters])


def test_ranking_by_psnr_and_by_lpips() -> None:
    assert ranking(report_of([20.0, 30.0, 10.0])) == [1, 0, 2]
    assert ranking(report_of([0.2, 0.3, 0.1], "lpips_squeeze")) == [2, 0, 1]
    both = report_of([20.0, 30.0])
    both.pictures["lpips_squeeze"] = [0.1, 0.2]
    assert ranked_by(both) == "lpips_squeeze" and ranking(both) == [0, 1]


def test_extremes() -> None:
    assert extremes(list(range(24))) == {
        "best": [0, 1, 2, 3],
        "median": [10, 11, 12, 13],
        "worst": [23, 22, 21, 20],
    }
    assert extremes([7, 8, 9]) == {"best": [7], "median": [8], "worst": [9]}
    assert extremes([7, 8]) == {"best": [7], "worst": [8]}
    assert extremes([7]) == {"best": [7]}
    for count in range(3, 30):
        places = [place for group in extremes(list(range(count))).values() for place in group]
        assert len(set(places)) == len(places)


def test_the_worst_picture_is_the_worst_and_comes_back_as_it_was_measured(
    tmp_path: Path, sheets: list[list[Row]]
) -> None:
    source = Photos(9, broken=2)  # so that places in the report are not those in the source
    spoiler = Spoiler(source.pictures[SPOILED])
    comparison = measured(source, spoiler)
    write_folder(tmp_path, comparison, [spoiler], source, POLICY)
    (report,) = comparison.reports
    columns = report.pictures
    worst = min(columns["psnr_db"])
    above, below = sheets[-1]
    assert above[0][1] == source.key(SPOILED)
    assert below[0][1].startswith(f"{worst:.2f} dB, SSIM ")
    for (original, key), (back, _) in zip(above, below, strict=True):
        pair = to_tensor(original)[None], to_tensor(back)[None]
        place = columns["key"].index(key)
        assert float(psnr(*pair)) == pytest.approx(columns["psnr_db"][place], abs=1e-4)
    assert [len(sheet) for sheet in sheets] == [2, 2, 2]
    with Image.open(tmp_path / "spoiler-pictures.png") as sheet:
        assert sheet.width > 2 * 256 and sheet.height > 6 * 256


def test_several_models_side_by_side(tmp_path: Path, sheets: list[list[Row]]) -> None:
    source = Photos(12)
    first, second = Codes(source.pictures[SPOILED], "org/a"), Spoiler(source.pictures[0], "org a")
    comparison = measured(source, first, second)
    write_folder(tmp_path / "new" / "folder", comparison, [first, second], source, POLICY)
    files = sorted(path.name for path in (tmp_path / "new" / "folder").iterdir())
    assert files == [
        "compared.png",
        "org-a-2-pictures.png",
        "org-a-codes.png",
        "org-a-pictures.png",
        "report.json",
        "report.md",
    ]
    compared = sheets[0]
    assert len(compared) == 8 and all(len(row) == 3 for row in compared)
    assert compared[-1][0][1] == f"12 of 12: {source.key(SPOILED)}"
    assert [caption.split(":")[0] for _, caption in compared[-1][1:]] == ["org/a", "org a"]
    negative = 255 - torch.tensor(list(compared[-1][0][0].tobytes()))
    assert torch.equal(torch.tensor(list(compared[-1][1][0].tobytes())), negative)


def test_the_json_has_reports_and_differences_but_no_counts(tmp_path: Path) -> None:
    source = Photos(4)
    adapters = [Codes(source.pictures[0], "same"), Codes(source.pictures[1], "same")]
    comparison = measured(source, *adapters)
    assert comparison.reports[0].code_counts is not None
    assert comparison.reports[0].code_counts.sum() == 4 * 16
    write_folder(tmp_path, comparison, adapters, source, POLICY)
    first, second = json.loads((tmp_path / "report.json").read_text())
    assert first.keys() == {"figures", "protocol", "pictures"}
    assert second["minus_first"]["psnr_db"]["mean"] == pytest.approx(
        comparison.minus_first[0]["psnr_db"]["mean"]
    )
    assert (tmp_path / "same-codes.png").is_file() and (tmp_path / "same-2-codes.png").is_file()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    source = Photos(2)
    adapter = Spoiler(source.pictures[0])
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write .*file"):
        write_folder(tmp_path / "file", measured(source, adapter), [adapter], source, POLICY)
