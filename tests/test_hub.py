"""Model folders: saved and loaded bit for bit, and every way in which one can be damaged (C6)."""

from __future__ import annotations

import dataclasses
import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from semhitok import files, hub
from semhitok.errors import FormatError, NotFoundError, StorageError
from semhitok.hub import CARD, CONFIG, METRICS, WEIGHTS
from semhitok.model import SemHiTok, Teacher, TokenizerConfig
from semhitok.model.config import TransformerConfig


@pytest.fixture
def folder(tiny_tokenizer: SemHiTok, tmp_path: Path) -> Path:
    hub.save(tiny_tokenizer, tmp_path / "model")
    return tmp_path / "model"


def metadata_of(folder: Path) -> dict[str, str]:
    with safe_open(folder / WEIGHTS, "pt") as file:
        return dict(file.metadata())


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    """Change the stored tensors and keep the file's metadata, its hash included."""
    tensors, metadata = load_file(folder / WEIGHTS), metadata_of(folder)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata)


def reconfigure(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    data = json.loads((folder / CONFIG).read_text())
    change(data)
    (folder / CONFIG).write_text(json.dumps(data))


# -- round trip ------------------------------------------------------------------------------------


def test_saved_and_loaded_bit_for_bit(
    tiny_tokenizer: SemHiTok, folder: Path, images: Tensor
) -> None:
    loaded = SemHiTok.from_pretrained(folder)
    assert loaded.config == tiny_tokenizer.config
    saved = tiny_tokenizer.state_dict()
    assert loaded.state_dict().keys() == saved.keys()
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == saved[name].dtype and tensor.equal(saved[name]), name
    ids = tiny_tokenizer.encode(images)
    assert loaded.encode(images).equal(ids)
    assert loaded.decode(ids).equal(tiny_tokenizer.decode(ids))
    assert loaded.semantic_features(ids).equal(tiny_tokenizer.semantic_features(ids))
    assert loaded.hash == tiny_tokenizer.hash == metadata_of(folder)["hash"]
    assert loaded.semantic_hash == metadata_of(folder)["semantic_hash"]
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_a_folder_holds_four_files_none_of_them_pickled(folder: Path) -> None:
    assert sorted(p.name for p in folder.iterdir()) == sorted([CARD, CONFIG, METRICS, WEIGHTS])
    assert json.loads((folder / CONFIG).read_text())["format_version"] == 1
    assert hub.read_metrics(folder) == {}
    card = (folder / CARD).read_text()
    assert card.startswith("---\n") and metadata_of(folder)["hash"] in card
    assert "K = 16 semantic codes, m = 4" in card


def test_card_and_metrics_are_the_given_ones(tiny_tokenizer: SemHiTok, tmp_path: Path) -> None:
    hub.save(tiny_tokenizer, tmp_path, card="# Ein schönes Modell\n", metrics={"psnr": 20.5})
    assert (tmp_path / CARD).read_bytes().decode("utf-8") == "# Ein schönes Modell\n"
    assert hub.read_metrics(tmp_path) == {"psnr": 20.5}
    (tmp_path / METRICS).unlink()
    assert hub.read_metrics(tmp_path) == {}


def test_saving_again_over_a_folder(tiny_tokenizer: SemHiTok, folder: Path) -> None:
    before = metadata_of(folder)["hash"]
    with torch.no_grad():
        tiny_tokenizer.pixel.codebook.base.add_(1)
    tiny_tokenizer.save_pretrained(folder)
    assert SemHiTok.from_pretrained(folder).hash == tiny_tokenizer.hash != before


def test_float16_is_stored_only_where_it_loses_nothing(
    tiny_tokenizer: SemHiTok, tmp_path: Path
) -> None:
    pixel = tiny_tokenizer.pixel.codebook
    with torch.no_grad():
        pixel.base.copy_(pixel.base.half())  # can be told in 16 bits
    tiny_tokenizer.save_pretrained(tmp_path)
    stored = load_file(tmp_path / WEIGHTS)
    assert stored["pixel.codebook.base"].dtype == torch.float16
    assert stored["pixel.encoder.linear.weight"].dtype == torch.float32
    for name, tensor in tiny_tokenizer.state_dict().items():
        assert stored[name].to(tensor.dtype).equal(tensor), name
    loaded = SemHiTok.from_pretrained(tmp_path)
    assert loaded.pixel.codebook.base.dtype == torch.float32
    assert loaded.hash == tiny_tokenizer.hash


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([0.5, -0.0, 1024.0], torch.float16),
        ([0.1], torch.float32),
        ([70000.0], torch.float32),  # too large
        ([1e-9], torch.float32),  # too small
        ([float("nan")], torch.float32),
        ([float("inf")], torch.float16),
    ],
)
def test_stored_form(values: list[float], dtype: torch.dtype) -> None:
    tensor = torch.tensor(values)
    stored = hub.stored_form(tensor)
    assert stored.dtype == dtype
    assert stored.float().view(torch.int32).equal(tensor.view(torch.int32))
    assert hub.stored_form(torch.tensor([3])).dtype == torch.int64


@pytest.mark.usefixtures("as_installed")
def test_whole_numbers_for_floats_do_not_change_the_hash(
    tiny_config: TokenizerConfig, make_tokenizer: Callable[..., SemHiTok], tmp_path: Path
) -> None:
    """`mlp_ratio=2` in Python is 2.0 once it was read from JSON."""
    whole = TransformerConfig(width=16, depth=1, heads=2, mlp_ratio=2)
    semantic = dataclasses.replace(tiny_config.semantic, decoder=whole)
    model = make_tokenizer(dataclasses.replace(tiny_config, semantic=semantic))
    model.save_pretrained(tmp_path)
    assert SemHiTok.from_pretrained(tmp_path).hash == model.hash


def test_a_model_loaded_in_parts_cannot_be_saved(folder: Path, tmp_path: Path) -> None:
    decoder = SemHiTok.from_pretrained(folder, parts=("decode",))
    with pytest.raises(FormatError, match="loaded for \\['decode'\\]; load all of it to save it"):
        decoder.save_pretrained(tmp_path / "other")


# -- damaged folders -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_truncated_weights(folder: Path, share: float) -> None:
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(FormatError, match=f"{WEIGHTS} is damaged .* get a whole copy"):
        SemHiTok.from_pretrained(folder)


def test_weights_that_are_something_else(folder: Path) -> None:
    torch.save({"a": torch.zeros(1)}, folder / WEIGHTS)
    with pytest.raises(FormatError, match="is damaged"):
        SemHiTok.from_pretrained(folder)


@pytest.mark.parametrize("parts", [("encode", "decode", "features"), ("decode",)])
def test_a_tensor_of_wrong_shape(folder: Path, parts: tuple[Any, ...]) -> None:
    name = "pixel.codebook.base"
    rewrite(folder, lambda t: t.update({name: torch.zeros(5, 6)}))
    with pytest.raises(FormatError, match=rf"{name} has shape \(5, 6\); the config says \(4, 6\)"):
        SemHiTok.from_pretrained(folder, parts=parts)


def test_a_missing_tensor(folder: Path) -> None:
    rewrite(folder, lambda t: t.pop("semantic.codebook.codes"))
    with pytest.raises(FormatError, match="lacks 1 tensors: semantic.codebook.codes"):
        SemHiTok.from_pretrained(folder)
    with pytest.raises(FormatError, match="lacks 1 tensors: semantic.codebook.codes"):
        SemHiTok.from_pretrained(folder, parts=("decode",))


def test_a_tensor_that_only_another_part_needs(folder: Path, images: Tensor) -> None:
    rewrite(folder, lambda t: t.pop("pixel.encoder.linear.weight"))
    SemHiTok.from_pretrained(folder, parts=("decode",))
    with pytest.raises(FormatError, match="lacks 1 tensors: pixel.encoder.linear.weight"):
        SemHiTok.from_pretrained(folder, parts=("encode",))


def test_an_unknown_tensor(folder: Path) -> None:
    rewrite(folder, lambda t: t.update({"pixel.extra": torch.zeros(1)}))
    with pytest.raises(FormatError, match="has 1 unknown tensors: pixel.extra .*another model"):
        SemHiTok.from_pretrained(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(patchsize=8), "unknown key 'patchsize'; did you mean 'patch_size'"),
        (lambda d: d["pixel"].pop("num_codes"), "config.pixel lacks the key 'num_codes'"),
        (lambda d: d.update(format_version=2), "format_version 2; .*upgrade semhitok"),
        (lambda d: d["pixel"].update(num_codes="4"), "config.pixel.num_codes is '4'; int"),
    ],
)
def test_a_wrong_config(
    folder: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    reconfigure(folder, change)
    with pytest.raises(FormatError, match=message):
        SemHiTok.from_pretrained(folder)


def test_a_config_of_another_size(folder: Path) -> None:
    reconfigure(folder, lambda d: d["pixel"].update(num_codes=8))
    with pytest.raises(FormatError, match=r"has shape \(4, 6\); the config says \(8, 6\)"):
        SemHiTok.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", f"{CONFIG} is not JSON .* get a whole copy"),
        ("", f"{CONFIG} is not JSON"),
        ("[1]", f"{CONFIG} holds list; a mapping is needed"),
    ],
)
def test_a_config_that_is_none(folder: Path, text: str, message: str) -> None:
    (folder / CONFIG).write_text(text)
    with pytest.raises(FormatError, match=message):
        SemHiTok.from_pretrained(folder)


def test_a_config_of_other_bytes(folder: Path) -> None:
    (folder / CONFIG).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="is not JSON"):
        SemHiTok.from_pretrained(folder)


def test_metrics_that_are_no_json(folder: Path) -> None:
    (folder / METRICS).write_text("{")
    with pytest.raises(FormatError, match=f"{METRICS} is not JSON"):
        hub.read_metrics(folder)


@pytest.mark.parametrize("name", ["semantic.codebook.codes", "pixel.decoder.linear.bias"])
def test_a_tampered_weight(folder: Path, name: str) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        tensors[name].view(-1)[0] += 1e-3

    rewrite(folder, nudge)
    with pytest.raises(FormatError, match="does not have the hash that it was saved with"):
        SemHiTok.from_pretrained(folder)


def test_a_tampered_config(folder: Path) -> None:
    reconfigure(folder, lambda d: d["semantic"]["teacher"].update(std=[0.4, 0.5, 0.5]))
    with pytest.raises(FormatError, match="config or weights were changed"):
        SemHiTok.from_pretrained(folder)


def test_weights_without_a_hash(folder: Path) -> None:
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS)
    with pytest.raises(FormatError, match="does not have the hash"):
        SemHiTok.from_pretrained(folder)


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(FormatError, match=f"model has no {name}"):
        SemHiTok.from_pretrained(folder)


# -- names -----------------------------------------------------------------------------------------


@pytest.fixture
def zoo(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that brings `tiny` and `tiny-m128`."""
    package = folder.parent / "package"
    for name in ("tiny", "tiny-m128"):
        (package / "zoo" / name).mkdir(parents=True)
        for file in folder.iterdir():
            (package / "zoo" / name / file.name).write_bytes(file.read_bytes())
    (package / "zoo" / "not-a-model").mkdir()
    monkeypatch.setattr(hub, "resources", SimpleNamespace(files=lambda _: package))


@pytest.mark.usefixtures("zoo")
def test_bundled_models_load_by_name(tiny_tokenizer: SemHiTok, images: Tensor) -> None:
    assert hub.bundled_models() == ["tiny", "tiny-m128"]
    assert SemHiTok.from_pretrained("tiny").hash == tiny_tokenizer.hash
    teacher = hub.bundled_teacher("tiny")
    assert tiny_tokenizer.semantic.trunk is not None
    assert teacher(images, (4, 4)).equal(tiny_tokenizer.semantic.trunk(images, (4, 4)))


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tinny", "^there is no model 'tinny'; did you mean 'tiny' or 'tiny-m128'"),
        ("zzz", "^there is no model 'zzz'; allowed: tiny, tiny-m128; a folder"),
        ("a/b/c", "^there is no model 'a/b/c'"),
        ("/nowhere/model", "^there is no model '/nowhere/model'"),
    ],
)
def test_unknown_names(name: str, message: str) -> None:
    with pytest.raises(NotFoundError, match=message):
        SemHiTok.from_pretrained(name)


@pytest.mark.usefixtures("zoo")
def test_a_teacher_of_a_model_that_is_not_bundled() -> None:
    with pytest.raises(NotFoundError, match="'tiy'.* is not there; name a teacher"):
        hub.bundled_teacher("tiy")


def test_a_package_without_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "resources", SimpleNamespace(files=lambda _: tmp_path))
    assert hub.bundled_models() == []


@pytest.mark.usefixtures("as_installed")
def test_unknown_parts(folder: Path) -> None:
    with pytest.raises(NotFoundError, match="no part 'paint'; allowed: encode, decode, features"):
        hub.load(folder, parts=("paint",))  # type: ignore[arg-type]


# -- the Hub ---------------------------------------------------------------------------------------


def test_a_model_of_the_hub(
    tiny_tokenizer: SemHiTok, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def snapshot_download(repo_id: str, **options: Any) -> str:
        asked.append((repo_id, options["revision"], sorted(options["allow_patterns"])))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    loaded = SemHiTok.from_pretrained("owner/name", revision="v2")
    assert loaded.hash == tiny_tokenizer.hash
    assert asked == [("owner/name", "v2", sorted([CONFIG, WEIGHTS, CARD, METRICS]))]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError("no network\nand more"), "no network"),
        (OSError(), "OSError"),
        (LocalEntryNotFoundError("not cached"), "not cached"),
        (HFValidationError("bad id"), "bad id"),
    ],
)
def test_a_hub_that_gives_nothing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    def snapshot_download(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    message = rf"^no model 'owner/name': not a folder, and the Hub gives none \({reason}\)"
    with pytest.raises(NotFoundError, match=message):
        SemHiTok.from_pretrained("owner/name")


def test_push_uploads_a_whole_folder(
    tiny_tokenizer: SemHiTok, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: dict[str, Any] = {}

    class HfApi:
        def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> str:
            calls["create"] = (repo_id, private, exist_ok)
            return f"https://huggingface.co/{repo_id}"

        def upload_folder(self, repo_id: str, folder_path: str) -> None:
            calls["upload"] = repo_id
            calls["hash"] = SemHiTok.from_pretrained(folder_path).hash
            calls["files"] = sorted(p.name for p in Path(folder_path).iterdir())

    monkeypatch.setattr(huggingface_hub, "HfApi", HfApi)
    address = tiny_tokenizer.push_to_hub("owner/name", private=True)
    assert address == "https://huggingface.co/owner/name"
    assert calls["create"] == ("owner/name", True, True) and calls["upload"] == "owner/name"
    assert calls["hash"] == tiny_tokenizer.hash
    assert calls["files"] == sorted([CARD, CONFIG, METRICS, WEIGHTS])


# -- disks -----------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made(tiny_tokenizer: SemHiTok, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "model"):
        with pytest.raises(StorageError, match="^cannot write .*; free space or choose another"):
            tiny_tokenizer.save_pretrained(place)


@pytest.mark.skipif(sys.platform == "win32", reason="other permissions")
def test_a_folder_that_cannot_be_written(
    tiny_tokenizer: SemHiTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(hub, "save_file", save_file)
    message = f"^cannot write .*{WEIGHTS}: Permission denied; free space or choose another folder"
    with pytest.raises(StorageError, match=message):
        tiny_tokenizer.save_pretrained(tmp_path)


def test_a_full_disk_leaves_the_old_model_whole(
    tiny_tokenizer: SemHiTok, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {p.name: p.read_bytes() for p in folder.iterdir()}

    def save_file(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half a file")
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(hub, "save_file", save_file)
    with torch.no_grad():
        tiny_tokenizer.pixel.codebook.base.add_(1)
    with pytest.raises(StorageError, match=f"^cannot write .*{WEIGHTS}: the disk is full;"):
        tiny_tokenizer.save_pretrained(folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before
    SemHiTok.from_pretrained(folder)


def test_a_disk_that_fills_when_the_file_is_flushed(
    tiny_tokenizer: SemHiTok, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fsync)
    with pytest.raises(StorageError, match="the disk is full"):
        tiny_tokenizer.save_pretrained(tmp_path / "model")
    assert not list((tmp_path / "model").iterdir())


# -- a trunk that is fetched by its source ---------------------------------------------------------


@pytest.fixture
def teacher_folder(tiny_config: TokenizerConfig, tmp_path: Path) -> Path:
    """A MobileNetV2 as `transformers` saves it."""
    from transformers import MobileNetV2Config, MobileNetV2Model

    torch.manual_seed(1)
    network = MobileNetV2Model(MobileNetV2Config(depth_multiplier=0.1))
    network.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def external(tiny_config: TokenizerConfig, teacher_folder: Path) -> SemHiTok:
    """A tokenizer whose trunk is not part of its folder."""
    teacher = Teacher.from_pretrained(teacher_folder, output_stride=8)
    semantic = dataclasses.replace(tiny_config.semantic, teacher=teacher.config, bundled=False)
    return SemHiTok(dataclasses.replace(tiny_config, semantic=semantic), teacher).eval()


def test_a_trunk_that_is_not_bundled_is_fetched(
    external: SemHiTok, tmp_path: Path, images: Tensor
) -> None:
    external.save_pretrained(tmp_path / "model")
    stored = load_file(tmp_path / "model" / WEIGHTS)
    assert not any(name.startswith(hub.TRUNK) for name in stored)
    assert "semantic.codebook.codes" in stored
    loaded = SemHiTok.from_pretrained(tmp_path / "model")
    for name, tensor in external.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    assert loaded.encode(images).equal(external.encode(images))
    assert loaded.hash == external.hash


def test_a_fetched_trunk_of_other_weights(
    external: SemHiTok, teacher_folder: Path, tmp_path: Path
) -> None:
    external.save_pretrained(tmp_path / "model")
    tensors = load_file(teacher_folder / WEIGHTS)
    name = next(n for n in sorted(tensors) if "conv_stem" in n and tensors[n].ndim == 4)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, teacher_folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(FormatError, match="has weights of hash .*; the config names"):
        SemHiTok.from_pretrained(tmp_path / "model")


def test_decoding_does_not_fetch_the_trunk(
    external: SemHiTok, teacher_folder: Path, tmp_path: Path
) -> None:
    external.save_pretrained(tmp_path / "model")
    teacher_folder.rename(tmp_path / "gone")
    decoder = SemHiTok.from_pretrained(tmp_path / "model", parts=("decode",))
    assert decoder.decode(torch.zeros(1, 2, 2, dtype=torch.int64)).shape == (1, 3, 16, 16)
