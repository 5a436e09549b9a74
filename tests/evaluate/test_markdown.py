from __future__ import annotations

import pytest

from semhitok.evaluate.markdown import Illustration, to_markdown
from semhitok.evaluate.report import Comparison, Report

SUMMARY = {"mean": 21.987654, "standard_error": 0.1234, "low": 21.5, "high": 22.5}


def report(name: str, psnr_db: list[float]) -> Report:
    return Report(
        figures={
            "pictures": 2,
            "psnr_db": SUMMARY,
            "rate": {"bits_per_pixel": 0.25},
            "failed": {"x|y_<b>.png": "not a\npicture"},
        },
        protocol={
            "data": {
                "name": "photos_1",
                "pictures": 1000,
                "selection": "2, evenly spaced",
                "fingerprint": "f00d",
            },
            "metrics": {"interval": "95%, bootstrap"},
            "model": {"name": name, "hash": f"hash-of-{name}"},
        },
        pictures={"key": ["a", "b"], "psnr_db": psnr_db},
    )


@pytest.fixture
def text() -> str:
    reports = [report("tiny", [20.0, 22.0]), report("we|bp", [21.0, 23.0])]
    return to_markdown(
        Comparison(reports), [Illustration("tiny: codes", "tiny codes.png", "Few *patches*.")]
    )


def test_models_data_protocol_and_pictures_are_named(text: str) -> None:
    assert text.startswith("# Report: tiny, we\\|bp\n")
    assert "2 pictures of photos\\_1" in text and "2, evenly spaced" in text and "`f00d`" in text
    assert "| `tiny.hash` | hash-of-tiny |" in text and "hash-of-we\\|bp" in text
    assert "![tiny: codes](tiny%20codes.png)" in text and "Few \\*patches\\*." in text


def test_figures_and_differences_have_intervals(text: str) -> None:
    assert "| `psnr_db` | 21.99 (21.5 to 22.5) | 21.99 (21.5 to 22.5) |" in text
    assert "| `rate.bits_per_pixel` | 0.25 | 0.25 |" in text
    differences = text.split("## Differences from tiny")[1].split("## ")[0]
    assert "| `psnr_db` | +1 (+1 to +1) |" in differences


def test_each_table_is_whole_whatever_the_names_are(text: str) -> None:
    tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
    assert len(tables) == 4
    for rows in tables:
        bars = {row.replace("\\|", "").count("|") for row in rows}
        assert len(bars) == 1
    assert "| x\\|y\\_\\<b\\>.png | not a picture |" in text


def test_one_model_has_no_differences() -> None:
    text = to_markdown(Comparison([report("tiny", [20.0, 22.0])]), [])
    assert "Differences" not in text and "21.99 (21.5 to 22.5)" in text
