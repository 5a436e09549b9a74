from __future__ import annotations

import json
from pathlib import Path

import pytest

from semhitok.errors import FormatError, StorageError
from semhitok.lm.claims import ASKED, claim_folder


def test_only_for_what_it_was_made_for(tmp_path: Path) -> None:
    asked = {"model": "abc", "sizes": (1, 2)}
    claim_folder(tmp_path / "out", asked)
    claim_folder(tmp_path / "out", asked)
    assert json.loads((tmp_path / "out" / ASKED).read_text()) == {"model": "abc", "sizes": [1, 2]}
    with pytest.raises(FormatError, match='was made with model "abc", not "abd"; ask for the same'):
        claim_folder(tmp_path / "out", {**asked, "model": "abd"})
    with pytest.raises(FormatError, match="was made with part.seed null, not 3"):
        claim_folder(tmp_path / "out", {**asked, "part": {"seed": 3}})


def test_strangers_and_damage(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(StorageError, match=r"files of another origin \(report.json\)"):
        claim_folder(tmp_path, {})
    for text in ("", "[]"):
        (tmp_path / ASKED).write_text(text)
        with pytest.raises(FormatError, match="is damaged; choose another --out"):
            claim_folder(tmp_path, {})
