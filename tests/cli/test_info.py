from __future__ import annotations

import json
from pathlib import Path

import pytest

from semhitok import SemHiTok, cli


def test_info_counts_what_the_model_has(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    tok = SemHiTok.from_pretrained(model)
    assert record["hash"] == tok.hash
    assert record["vocab_size"] == tok.vocab_size == 64
    assert record["parameters"]["total"] == sum(t.numel() for t in tok.state_dict().values())
    assert record["memory_bytes"] == 4 * record["parameters"]["total"]
    assert record["stored_bytes"] == (model / "model.safetensors").stat().st_size
    assert (record["grid"], record["bits_per_picture"], record["bytes_per_picture"]) == (
        [4, 4],
        6.0 * 16,
        12,
    )
    assert record["metrics"] == {"psnr_db": 12.5}
    # At 16 places: the decoder's embedding to width 16 alone; the searches alone.
    d, e = record["semantic_dim"], record["pixel_dim"]
    assert record["flops"]["decode"] > 2 * 16 * (d + e) * 16
    assert record["flops"]["encode"] > 2 * 16 * (16 * d + 4 * e)


def test_info_as_text(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", str(model)]) == 0
    out = capsys.readouterr().out
    assert "K = 16 semantic, m = 4 pixel codes each; vocabulary 64" in out
    assert "12.5" in out and "96 bits, 12 bytes" in out


@pytest.mark.slow
@pytest.mark.parametrize(("name", "vocab"), [("semhitok-256", 196_608), ("semhitok-384", 196_608)])
def test_info_of_a_recipe(name: str, vocab: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", name, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["vocab_size"] == vocab and not record["trained"]
    assert record["flops"]["decode enhanced"] > record["flops"]["decode"]


def test_unknown_model_names_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["info", "semhitok-265"]) == 2
    assert "'semhitok-256'" in capsys.readouterr().err


def test_changed_weights_are_found(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)
    assert cli.main(["info", str(copy)]) == 2
    assert "does not have the hash" in capsys.readouterr().err
