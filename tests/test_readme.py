"""The README's Python example runs as it stands."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

import pytest
from PIL import Image

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    photo = resources.files("skimage") / "data" / "astronaut.png"
    with resources.as_file(photo) as path:
        Image.open(path).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks()
    assert blocks
    for block in blocks:
        names: dict[str, object] = {}
        exec(compile(block, "README.md", "exec"), names)
        assert names["ids"].shape == (1, 16, 16)  # type: ignore[attr-defined]
        assert names["y"].shape == (1, 3, 128, 128)  # type: ignore[attr-defined]


def test_every_command_of_the_readme_exists() -> None:
    from semhitok.cli import app

    named = set(re.findall(r"^\| `semhitok (\w+)", README.read_text(), flags=re.MULTILINE))
    assert named == {command.callback.__name__ for command in app.registered_commands}
