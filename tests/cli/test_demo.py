from __future__ import annotations

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from PIL import Image

from semhitok import SemHiTok, cli
from semhitok.cli.demo import PHOTOS
from semhitok.cli.demo import photos as bundled_photos


def demo(*arguments: object) -> int:
    return cli.main(["demo", *map(str, arguments)])


class Page(HTMLParser):
    """Sources of pictures, other addresses, headings and open tags of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        assert "href" not in values
        if tag == "img":
            self.sources.append(values["src"] or "")
            assert values["alt"]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_demo_writes_what_it_says(
    model: Path,
    picture: Callable[..., Image.Image],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    picture(1, 64, 48).save(folder / "a<b>&.png")
    picture(2, 40, 40).save(folder / "second.png")
    (folder / "third.png").write_bytes(b"broken")
    assert demo(folder, "--model", model, "--out", out) == 3
    stdout, stderr = capsys.readouterr()
    assert stderr.startswith("failed: third.png: ") and "1 of 3 pictures failed" in stderr
    lines = stdout.splitlines()
    assert lines[0].split()[0] == "picture" and "AVIF bytes" in lines[0]
    assert [line.split()[0] for line in lines[1:4]] == ["a<b>&.png", "second.png", "mean"]
    assert all(line.split()[3] == "12" for line in lines[1:4])
    assert lines[-3:] == [str(out / n) for n in ("contact_sheet.png", "index.html", "ids.json")]

    html = (out / "index.html").read_text()
    page = Page()
    page.feed(html)
    assert page.open == [] and len(page.sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)
    assert "http" not in re.sub(r'"data:[^"]*"', "", html)
    assert "a&lt;b&gt;&amp;.png" in html and "a<b>" not in html

    tok = SemHiTok.from_pretrained(model)
    ids = json.loads((out / "ids.json").read_text())
    assert ids["hash"] == tok.hash
    for entry in ids["pictures"]:
        expected = tok.encode(tok.preprocess(folder / entry["name"]))[0]
        assert torch.equal(torch.tensor(entry["ids"]), expected)
    with Image.open(out / "contact_sheet.png") as sheet:
        assert sheet.width > 4 * 256 and sheet.height > 2 * 256
    assert sorted(p.name for p in out.iterdir()) == ["contact_sheet.png", "ids.json", "index.html"]


def test_demo_as_json_and_evenly_spaced(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("--model", model, "--out", tmp_path / "out", "--max-images", 1, "--json")
    assert demo(photos, *arguments) == 0
    stdout, stderr = capsys.readouterr()
    record = json.loads(stdout)
    assert list(record["pictures"]) == ["0.png"] and record["failed"] == {}
    figures = record["pictures"]["0.png"]
    assert figures["bytes"] == 12 and figures["JPEG.bytes"] > 100 and figures["WEBP.psnr_db"] > 5
    assert "showing 1" in stderr


def test_scikit_image_carries_most_photos() -> None:
    source = bundled_photos()
    assert len(source) >= 4 and {source.key(n) for n in range(len(source))} <= set(PHOTOS)
    assert source.read(0).width >= 256


def test_demo_refusals(
    model: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = photos / "0.png"
    for arguments in (
        (photos, "--model", model, "--out", file),
        (photos, "--model", model, "--out", file / "x"),
        (tmp_path / "none", "--model", model, "--out", tmp_path / "out"),
    ):
        assert demo(*arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
