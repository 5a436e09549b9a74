from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from semhitok.evaluate.markdown import Illustration
from semhitok.evaluate.report import Report
from semhitok.evaluate.sections import write_sections


def test_folder_of_a_report(tmp_path: Path) -> None:
    top1 = {"mean": 0.25, "standard_error": 0.1, "low": 0.1, "high": 0.5}
    report = Report({}, {"model": {"name": "toy", "hash": "abc"}})
    report.add("naming", {"top1": top1, "pictures": 4, "protocol": {"data": "a|b"}})
    rows = {"naming": [{"key": "1", "answer": "a \u00e9"}]}
    sheet = (Illustration("Drawn", "drawn.png", "Some."), Image.new("RGB", (8, 8)))
    write_sections(tmp_path / "out", "toy", report, rows, [sheet])
    record = json.loads((tmp_path / "out/report.json").read_text())
    assert record["figures"] == {"naming": {"top1": top1, "pictures": 4}}
    assert record["protocol"]["naming"] == {"data": "a|b"}
    text = (tmp_path / "out/report.md").read_text()
    assert "| `top1` | 0.25 ± 0.1  (95%: 0.1 to 0.5) |".replace("  ", " ") in text
    assert "| `data` | a\\|b |" in text and "| `model.hash` | abc |" in text
    assert text.count("`data`") == 1 and "![Drawn](drawn.png)" in text
    assert json.loads((tmp_path / "out/naming.jsonl").read_text("utf-8")) == rows["naming"][0]
    with Image.open(tmp_path / "out/drawn.png") as image:
        assert image.size == (8, 8)
