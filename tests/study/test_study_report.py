"""Tables: means, spreads and differences are those of the seeds, and pictures are written."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from semhitok.errors import DataError
from semhitok.study.report import COLUMNS, by_row, difference, page, spread, write_report
from semhitok.study.runner import Result
from semhitok.study.survey import Finding, to_json

PROTOCOL = {
    "scale": "small",
    "data": {"name": "photos", "fingerprint": "0123456789abcdef0"},
    "exam": {"photos": {"name": "held-out", "fingerprint": "fedcba9876543210f"}},
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
}


def result(row: str, seed: int, psnr: float, probe: float = 0.5) -> Result:
    figures = {
        "psnr_db": psnr,
        "bits_per_patch": 14.0,
        "semantics": {"codes": probe, "told": probe, "cosine": 0.3},
    }
    return Result(row, seed, "", figures, {"train": 60.0, "measure": 60.0}, PROTOCOL)


def three(row: str, psnr: tuple[float, float, float]) -> list[Result]:
    return [result(row, seed, value) for seed, value in enumerate(psnr)]


def test_differences_are_of_the_same_seed() -> None:
    found = by_row([*three("flat", (23.0, 24.0, 25.0)), *three("staged", (20.0, 21.0, 22.1))])
    mean, half = difference(COLUMNS[1], found["flat"], found["staged"]) or (0.0, 0.0)
    assert mean == pytest.approx(8.9 / 3)
    assert half == pytest.approx(4.303 * spread([3.0, 3.0, 2.9])[1] / 3**0.5)
    assert difference(COLUMNS[1], found["flat"][:1], found["staged"]) is None


def test_the_page_tells_rows_spread_and_protocol() -> None:
    results = [*three("flat", (23.0, 24.0, 25.0)), *three("staged", (20.0, 20.0, 20.3))]
    results += [result("m-4x", 0, 21.5), result("no-noise", 0, 22.0)]
    text = page(results)
    assert "| 5. flat VQ of K * m codes, pixels alone | 3 | 14.0 ± 0.0 | 24.00 ± 1.00 |" in text
    assert "| 5. flat VQ of K * m codes, pixels alone | +3.90 ± " in text
    assert "| m 4x, same K | 1 | 14.0 | 21.50 |" in text
    assert "held-out (fingerprint fedcba9876543210)" in text and "0.3 h of cpu" in text
    assert text.index("## Headline rows") < text.index("## K and m") < text.index("## Protocol")


def test_without_results_there_is_no_page_and_without_row_4_no_differences() -> None:
    with pytest.raises(DataError, match="no results here; run some rows first"):
        page([])
    text = page([*three("flat", (1.0, 2.0, 3.0)), result("m-4x", 0, 21.5)])
    assert "| 2.00 ± 1.00 |" in text and "row less row 4" not in text
    assert "| m 4x, same K | 1 |" in text


def test_report_files(tmp_path: Path) -> None:
    results = [*three("flat", (23.0, 24.0, 25.0)), *three("staged", (20.0, 20.0, 20.3))]
    results += [result("m-4x", 0, 21.5), result("k-4x", 0, 18.5, probe=0.6)]
    for one in results:
        (tmp_path / f"{one.row}-{one.seed}.json").write_text(one.to_json())
    assert write_report(tmp_path).read_text() == page(sorted(results, key=lambda r: r.row))
    for name in ("headline.png", "codes.png"):
        with Image.open(tmp_path / name) as image:
            assert image.width > 1000 and len(image.convert("L").histogram()) == 256
            assert image.convert("L").getextrema() == (0, 255)


def test_a_survey_is_part_of_the_page() -> None:
    share = {"mean": 0.9, "standard_error": 0.01, "low": 0.88, "high": 0.92}
    finding = Finding("MobileNetV2", -1, 8, 64, share, share, share)
    text = page([result("staged", 0, 20.0)], to_json([finding], {}))
    assert "## Pixels of one semantic code" in text
    assert "| MobileNetV2 | -1 | 8 | 0.90 ± 0.02 | 0.90 |" in text
