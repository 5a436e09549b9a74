"""Progress as a log file shows it."""

from __future__ import annotations

import pytest

from semhitok.cli import console


def test_progress_is_a_line_a_minute_where_nobody_watches(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = {"now": 100.0}
    monkeypatch.setattr(console.time, "monotonic", lambda: clock["now"])
    with console.progress("tokenizing", 40_000) as advance:
        for now, done, failed in ((130.0, 500, 0), (200.0, 2000, 0), (240.0, 2500, 3), (280, 0, 0)):
            clock["now"] = now
            advance(done, failed)
        clock["now"] = 300.0
        advance(4000, 3)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "tokenizing: 2,000 of 40,000 (5.0%), 20.0/s, 32 min left",
        "tokenizing: 4,000 of 40,000 (10.0%), 20.0/s, 3 failed, 30 min left",
    ]


def test_long_times_are_hours() -> None:
    texts = [console.duration(s) for s in (20.0, 130.0, 7000.0, 9000.0)]
    assert texts == ["20 s", "2 min", "117 min", "2.5 h"]
