import json

import pytest
from rich.console import Console

from semhitok.errors import FormatError
from semhitok.evaluate.report import Report, package_versions

REPORT = Report(
    figures={
        "pictures": 2,
        "psnr_db": {"mean": 21.987654, "standard_error": 0.1234, "low": 21.5, "high": 22.5},
        "codes": {"semantic_usage": 0.5, "frequent_children_share": None},
        "failed": {"photos/[broken].jpg": "not a picture"},
    },
    protocol={"data": {"name": "photos"}, "versions": {"torch": "2"}},
)


def test_json_round_trip():
    assert Report.from_json(REPORT.to_json()) == REPORT
    assert set(json.loads(REPORT.to_json())) == {"figures", "protocol"}


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
    text = console.export_text()
    assert "21.99 ± 0.12  (95%: 21.5 to 22.5)" in text
    assert "codes.semantic_usage" in text and "data.name" in text
    assert "failed.photos/[broken].jpg" in text  # brackets are text here, not markup


def test_versions_name_what_decides_digits():
    assert {"semhitok", "torch", "pillow"} <= package_versions().keys()
