"""The README's Python examples run as they stand."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def run(block: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def test_the_tokenizers_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    photo = resources.files("skimage") / "data" / "astronaut.png"
    with resources.as_file(photo) as path:
        Image.open(path).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = run(python_blocks()[0])
    assert names["ids"].shape == (1, 16, 16) and names["y"].shape == (1, 3, 128, 128)


def test_the_example_of_token_shards_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from semhitok.data.tokens import TokenMetadata, TokenRecord, write_tokens

    metadata = TokenMetadata(
        model="toy", hash="abc", num_semantic=16, num_pixel=4, patch_size=8, policy="",
        dtype="float32", version="1",
    )  # fmt: skip
    codes = torch.zeros(2, 3, dtype=torch.int64)
    (tmp_path / "tokens").mkdir()
    record = TokenRecord("a", codes + 5, codes + 3, {"label": 7})
    write_tokens(tmp_path / "tokens" / "tokens-0.parquet", [record], metadata)
    monkeypatch.chdir(tmp_path)
    sample = run(python_blocks()[1])["sample"]
    assert sample.ids.equal(codes + 23) and sample.extra == {"label": 7}


def test_every_command_of_the_readme_exists() -> None:
    from semhitok.cli import app

    named = set(re.findall(r"^\| `semhitok (\w+)", README.read_text(), flags=re.MULTILINE))
    commands = {command.callback.__name__ for command in app.registered_commands}
    assert named == commands | {group.name for group in app.registered_groups}
