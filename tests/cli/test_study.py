"""What the command adds to `Study`: rows by name, refusals before any work, tables of results."""

from __future__ import annotations

from pathlib import Path

import pytest

from semhitok import cli
from semhitok.study.runner import Result

PROTOCOL = {
    "scale": "small",
    "data": {"name": "photos", "fingerprint": "0" * 64},
    "exam": {},
    "device": "cpu",
    "versions": {"torch": "2.13.0"},
}


def write_result(folder: Path, row: str, seed: int, psnr: float) -> None:
    figures = {"psnr_db": psnr, "bits_per_patch": 14.0, "semantics": {"codes": 0.5}}
    result = Result(row, seed, "", figures, {"train": 1.0, "measure": 1.0}, PROTOCOL)
    (folder / f"{row}-{seed}.json").write_text(result.to_json())


def test_rows_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["study", "codes", "staged", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["row", "group", "title"]
    assert lines[1].startswith("staged") and "4. SemHiTok, staged" in lines[1]
    assert all(" codes " in line for line in lines[2:]) and len(lines) == 9


def test_tables_are_made_anew_from_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(2):
        write_result(tmp_path, "staged", seed, 20.0 + seed)
        write_result(tmp_path, "flat", seed, 22.0 + seed)
    assert cli.main(["study", "--out", str(tmp_path)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "tables.md" and "22.50 ± 0.71" in path.read_text()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["stagd"], "no row or group 'stagd'; did you mean 'staged'"),
        (["--scale", "huge"], "no scale 'huge'; allowed: medium, small, smoke"),
        (["--data", "x.parquet"], "--data is given without --photos and --probe"),
        ([], "no results here; run some rows first"),
    ],
)
def test_refusals_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["study", *arguments, "--out", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1
