import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from semhitok.errors import DataError, FormatError
from semhitok.evaluate.report import (
    Comparison,
    Report,
    package_versions,
    paired_differences,
    unique,
)

REPORT = Report(
    figures={
        "pictures": 2,
        "psnr_db": {"mean": 21.987654, "standard_error": 0.1234, "low": 21.5, "high": 22.5},
        "codes": {"semantic_usage": 0.5, "frequent_children_share": None},
        "failed": {"photos/[broken].jpg": "not a picture"},
    },
    protocol={
        "data": {"name": "photos"},
        "versions": {"torch": "2"},
        "model": {"name": "tiny", "hash": "0a"},
    },
)


def test_json_round_trip():
    assert Report.from_json(REPORT.to_json()) == REPORT
    assert set(json.loads(REPORT.to_json())) == {"figures", "protocol", "pictures"}


def test_json_without_nan():
    with pytest.raises(ValueError):
        Report({"psnr_db": float("nan")}, {}).to_json()


@pytest.mark.parametrize("text", ["{", "[]", '{"figures": {}}', '{"figures": 1, "protocol": {}}'])
def test_what_is_not_a_report_is_refused(text):
    with pytest.raises(FormatError, match="not a report"):
        Report.from_json(text)


def test_table_shows_figures_and_protocol():
    console = Console(width=120, record=True, quiet=False, file=open("/dev/null", "w"))
    with console.file:
        console.print(REPORT.table())
        console.print(Comparison([REPORT]).protocol_table())
    text = console.export_text()
    assert "21.99 ± 0.12  (95%: 21.5 to 22.5)" in text
    assert "codes.semantic_usage" in text and "data.name" in text
    assert "failed.photos/[broken].jpg" in text  # brackets are text here, not markup


def test_versions_name_what_decides_digits():
    assert {"semhitok", "torch", "pillow"} <= package_versions().keys()


def test_paired_differences_need_the_same_pictures():
    columns = {"key": ["a", "b", "c"], "psnr_db": [20.0, 22.0, 30.0], "ssim": [0.1, 0.2, 0.3]}
    better = {"key": ["a", "b", "c"], "psnr_db": [21.0, 24.0, 33.0]}
    base, other = Report({}, {}, columns), Report({}, {}, better)
    differences = paired_differences(other, base)
    assert set(differences) == {"psnr_db"}
    assert differences["psnr_db"]["mean"] == pytest.approx(2)
    assert 1 <= differences["psnr_db"]["low"] < 2 < differences["psnr_db"]["high"] <= 3
    with pytest.raises(DataError, match="different pictures"):
        paired_differences(Report({}, {}, {"key": ["a"]}), base)


def test_equal_names_get_numbers():
    assert unique(["a", "b", "A", "a", "a-2"]) == ["a", "b", "A-2", "a-3", "a-2-2"]
    comparison = Comparison([replace(REPORT, pictures={"key": []})] * 2)
    assert comparison.labels == ["tiny", "tiny-2"]
    assert [row for row in comparison.protocol() if "hash" in row[0]] == [
        ("tiny.hash", "0a"),
        ("tiny-2.hash", "0a"),
    ]


def test_what_is_drawn_is_no_part_of_the_json():
    drawn = replace(REPORT, indices=[3, 5], code_counts=torch.ones(2, 2, dtype=torch.int64))
    assert drawn == REPORT and drawn.to_json() == REPORT.to_json()


def test_figures_of_all_groups_side_by_side():
    more = replace(REPORT, figures={"rate": {"bits_per_picture": 12345.6}, "fd_judge": 3.0})
    figures = Comparison([replace(REPORT, pictures={"key": []})] * 2).figures()
    assert list(figures) == ["psnr_db", "codes.semantic_usage", "codes.frequent_children_share"]
    names = ["fd_judge", "rate.bits_per_picture"]
    comparison = Comparison([replace(r, pictures={"key": []}) for r in (REPORT, more)])
    figures = comparison.figures()
    assert [name for name in figures if name in names] == names
    assert figures["fd_judge"] == [None, 3.0] and "failed" not in "".join(figures)
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(comparison.table())
    assert "12,346" in console.export_text()
