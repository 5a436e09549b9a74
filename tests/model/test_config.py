"""`config.json` and back, and what it refuses."""

from __future__ import annotations

import copy
import dataclasses
import json
from typing import Any

import pytest

from semhitok.errors import FormatError, RecipeError, SemHiTokError
from semhitok.model.config import (
    FORMAT_VERSION,
    FeedbackConfig,
    PixelDecoderConfig,
    StudentConfig,
    TokenizerConfig,
    TransformerConfig,
)


@pytest.fixture
def data(tiny_config: TokenizerConfig) -> dict[str, Any]:
    return copy.deepcopy(tiny_config.to_dict())


def put(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *way, last = path.split(".")
    place = data
    for key in way:
        place = place[key]
    place[last] = value
    return data


def test_json_and_back(tiny_config: TokenizerConfig) -> None:
    transformer = TransformerConfig(width=24, depth=3, heads=3, mlp_ratio=2.5)
    full = dataclasses.replace(
        tiny_config,
        semantic=dataclasses.replace(
            tiny_config.semantic,
            trunk="student",
            projection="pca",
            student=StudentConfig(transformer=transformer),
            feedback=FeedbackConfig(rounds=4),
        ),
        pixel=dataclasses.replace(
            tiny_config.pixel,
            offset_rank=2,
            enhance=PixelDecoderConfig(
                transformer=transformer, stage_widths=(8, 4), stage_depths=(1, 2)
            ),
        ),
    )
    for config in (tiny_config, full):
        text = json.dumps(config.to_dict())
        assert TokenizerConfig.from_dict(json.loads(text)) == config
        assert json.loads(text) == config.to_dict()  # plain types only: no tuples
        assert config.to_dict()["format_version"] == FORMAT_VERSION
    assert tiny_config.vocab_size == 16 * 4
    assert full.to_dict()["semantic"]["feedback"] == {"rounds": 4, "rate": 0.25}
    assert "feedback" not in tiny_config.to_dict()["semantic"]  # or older models' hash would change


@pytest.mark.parametrize("feedback", [{"rounds": 0}, {"rounds": 2, "rate": 0.0}])
def test_feedback_that_does_nothing_is_refused(data: dict[str, Any], feedback: Any) -> None:
    with pytest.raises(RecipeError, match="semantic.feedback: rounds is"):
        TokenizerConfig.from_dict(put(data, "semantic.feedback", feedback))


def test_what_may_be_left_out(data: dict[str, Any], tiny_config: TokenizerConfig) -> None:
    for path in ("semantic.student", "semantic.bundled", "pixel.enhance", "pixel.offset_rank"):
        section, key = path.split(".")
        del data[section][key]
    del data["format_version"]
    assert TokenizerConfig.from_dict(data) == tiny_config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("patchsize", 8, r"^config has an unknown key 'patchsize'; did you mean 'patch_size'"),
        ("pixel.num_code", 8, r"^config.pixel has an unknown key 'num_code'; did you mean 'num_co"),
        ("semantic.zzz", 8, r"^config.semantic has an unknown key 'zzz'; allowed: bundled, code_"),
        ("patch_size", "8", r"^config.patch_size is '8'; int is needed"),
        ("patch_size", 8.0, r"^config.patch_size is 8.0; int is needed"),
        ("patch_size", True, r"^config.patch_size is True; int is needed"),
        ("patch_size", None, r"^config.patch_size is None; int is needed"),
        ("name", 3, r"^config.name is 3; str is needed"),
        ("semantic.bundled", 1, r"^config.semantic.bundled is 1; bool is needed"),
        ("semantic.projection", "linear", r"is 'linear'; allowed: 'standardize', 'pca', 'mlp'"),
        ("semantic.teacher", [], r"^config.semantic.teacher is \[\]; a mapping is needed"),
        ("semantic.teacher.layers", 3, r"^config.semantic.teacher.layers is 3; a list is needed"),
        ("semantic.teacher.layers", ["a"], r"teacher.layers\[0\] is 'a'; int is needed"),
        ("semantic.teacher.mean", [0.5], r"^config.semantic.teacher.mean has 1 values; 3 are need"),
        ("semantic.teacher.architecture", 1, r"architecture is 1; a mapping is needed"),
        ("semantic.decoder.mlp_ratio", "4", r"mlp_ratio is '4'; float is needed"),
        ("pixel.offset_rank", "2", r"offset_rank is '2'; int is needed"),
        ("pixel.enhance", 2, r"^config.pixel.enhance is 2; a mapping is needed"),
        ("format_version", 2, r"^config has format_version 2; .* reads up to 1: upgrade semhitok"),
        ("format_version", "1", r"^config.format_version is '1'; int is needed"),
    ],
)
def test_refused_values(data: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        TokenizerConfig.from_dict(put(data, path, value))


def test_a_newer_version_is_named_before_its_unknown_keys(data: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="upgrade semhitok"):
        TokenizerConfig.from_dict(data | {"format_version": 9, "future": 1})


@pytest.mark.parametrize("path", ["name", "patch_size", "semantic", "pixel.decoder.transformer"])
def test_missing_keys_are_named(data: dict[str, Any], path: str) -> None:
    *way, last = path.split(".")
    place = data
    for key in way:
        place = place[key]
    del place[last]
    where = ".".join(["config", *way])
    with pytest.raises(FormatError, match=f"^{where} lacks the key '{last}'"):
        TokenizerConfig.from_dict(data)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("patch_size", 0, "^patch_size is 0; it must be at least 1"),
        ("semantic.num_codes", 0, "^semantic.num_codes is 0"),
        ("semantic.teacher.stride", -1, "^semantic.teacher.stride is -1"),
        ("pixel.num_codes", 0, "^pixel.num_codes is 0"),
        ("pixel.code_dim", 0, "^pixel.code_dim is 0"),
        ("pixel.offset_rank", 0, "^pixel.offset_rank is 0"),
        ("image_size", 36, "^image_size 36 is not a multiple of patch_size 8"),
        ("semantic.trunk", "student", "semantic.student must describe it"),
        ("pixel.encoder.width", 20, "^pixel.encoder: width 20 must be a multiple of 4 x heads"),
        ("pixel.encoder.width", 0, "^pixel.encoder: width 0 must"),
        ("pixel.encoder.heads", 0, "^pixel.encoder: width 16 must .* heads \\(0\\)"),
        ("pixel.encoder.depth", -1, "^pixel.encoder: depth is -1"),
        ("semantic.decoder.mlp_ratio", 0.0, "^semantic.decoder: depth is 1 and mlp_ratio 0;"),
        ("pixel.decoder.transformer.heads", 3, "^pixel.decoder.transformer: width 16"),
        ("pixel.decoder.stage_depths", [], "^pixel.decoder: 1 stage_widths and 0 stage_depths"),
        ("pixel.decoder.stage_widths", [0], "^pixel.decoder: stage_widths are \\[0\\]"),
    ],
)
def test_impossible_values(data: dict[str, Any], path: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        TokenizerConfig.from_dict(put(data, path, value))


def test_more_stages_than_the_patch_can_be_halved(data: dict[str, Any]) -> None:
    stages = {"stage_widths": [8] * 4, "stage_depths": [1] * 4}
    data["pixel"]["enhance"] = data["pixel"]["decoder"] | stages
    message = "pixel.enhance: 4 stages .* patch_size 8 is not a multiple of 16"
    with pytest.raises(RecipeError, match=message):
        TokenizerConfig.from_dict(data)


def test_student_and_enhance_are_checked_too(data: dict[str, Any]) -> None:
    bad = {"width": 10, "depth": 1, "heads": 1}
    wrong = copy.deepcopy(data)
    wrong["semantic"] |= {"trunk": "student", "student": {"transformer": bad}}
    with pytest.raises(RecipeError, match="^semantic.student.transformer: width 10"):
        TokenizerConfig.from_dict(wrong)
    data["pixel"]["enhance"] = {"transformer": bad}
    with pytest.raises(RecipeError, match="^pixel.enhance.transformer: width 10"):
        TokenizerConfig.from_dict(data)


def test_whole_numbers_do_for_floats(data: dict[str, Any]) -> None:
    config = TokenizerConfig.from_dict(put(data, "pixel.encoder.mlp_ratio", 3))
    assert isinstance(config.pixel.encoder.mlp_ratio, float)


def test_every_refusal_is_the_users_kind() -> None:
    assert issubclass(FormatError, SemHiTokError) and issubclass(RecipeError, SemHiTokError)
