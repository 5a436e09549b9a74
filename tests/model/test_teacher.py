"""Teachers of every family against `transformers` itself, on small random models saved here."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor

from semhitok.errors import FormatError, NotFoundError, RangeError, ShapeError
from semhitok.model.config import TeacherConfig
from semhitok.model.teacher import Teacher, load_named
from semhitok.model.trunk_source import find_file, read_model_config

VIT: dict[str, Any] = dict(
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=48,
    image_size=64,
    patch_size=16,
)
TEXT: dict[str, Any] = dict(
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    vocab_size=40,
    max_position_embeddings=8,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
CONVNEXT: dict[str, Any] = dict(
    hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 2, 1], layer_scale_init_value=1.0
)
MLP = {k: v for k, v in VIT.items() if k != "intermediate_size"} | {"mlp_ratio": 2}
NAFLEX = {k: v for k, v in VIT.items() if k != "image_size"} | {"num_patches": 16}


def clip() -> Any:
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=TEXT, vision_config=VIT, projection_dim=16)
    )


def siglip() -> Any:
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=TEXT, vision_config=VIT))


def siglip2() -> Any:
    return transformers.Siglip2Model(
        transformers.Siglip2Config(text_config=TEXT, vision_config=NAFLEX)
    )


@dataclasses.dataclass(frozen=True)
class Case:
    build: Callable[[], Any]
    layers: tuple[int, ...]
    """An intermediate layer, then several, the deepest of them -1."""
    stride: int = 16
    prefix: int = 0
    tower: str | None = None
    """Class that reads the vision tower alone; None for the saved model's own."""


CASES: dict[str, Case] = {
    "siglip": Case(siglip, (1, 3, -1), tower="SiglipVisionModel"),
    "siglip-alone": Case(
        lambda: transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**VIT)), (0, 2, -1)
    ),
    "siglip2-naflex": Case(siglip2, (-2, 0, -1), tower="Siglip2VisionModel"),
    "clip": Case(clip, (-2, 1, -1), prefix=1, tower="CLIPVisionModel"),
    "dinov2": Case(
        lambda: transformers.Dinov2Model(transformers.Dinov2Config(**MLP)), (2, 3, -1), prefix=1
    ),
    "dinov2-registers": Case(
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**MLP, num_register_tokens=3)
        ),
        (1, 2, -1),
        prefix=4,
    ),
    "dinov3": Case(
        lambda: transformers.DINOv3ViTModel(
            transformers.DINOv3ViTConfig(**VIT, num_register_tokens=2)
        ),
        (1, 3, -1),
        prefix=3,
    ),
    "vit": Case(
        lambda: transformers.ViTForImageClassification(transformers.ViTConfig(**VIT)),
        (1, 0, -1),
        prefix=1,
        tower="ViTModel",
    ),
    "convnext": Case(
        lambda: transformers.ConvNextForImageClassification(
            transformers.ConvNextConfig(**CONVNEXT)
        ),
        (3, 2, -1),
        stride=32,
        tower="ConvNextModel",
    ),
    "dinov3-convnext": Case(
        lambda: transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**CONVNEXT)),
        (3, 2, -1),
        stride=32,
        prefix=1,
    ),
    "mobilenet": Case(
        lambda: transformers.MobileNetV2ForImageClassification(
            transformers.MobileNetV2Config(depth_multiplier=0.25)
        ),
        (11, 3, -1),
        stride=32,
        tower="MobileNetV2Model",
    ),
}


def save(model: Any, folder: Path) -> Path:
    """A model with every weight and statistic moved off its initial value."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.1 * torch.randn(tensor.shape, generator=generator)
            tensor.add_(noise.abs() if name.endswith("running_var") else noise)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Saved models, each made once."""
    made: dict[str, Path] = {}

    def folder(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            made[name] = save(CASES[name].build(), tmp_path_factory.mktemp(name))
        return made[name]

    return folder


@pytest.fixture(scope="module")
def saved(case: Case, folders: Callable[[str], Path]) -> Path:
    return folders(next(name for name, c in CASES.items() if c is case))


@pytest.fixture
def vit(folders: Callable[[str], Path]) -> Path:
    return folders("vit")


@pytest.fixture
def mobilenet(folders: Callable[[str], Path]) -> Path:
    return folders("mobilenet")


def pictures(height: int, width: int, count: int = 2) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def reference(case: Case, folder: Path, pixels: Tensor, layer: int) -> Tensor:
    """What `transformers` gives for a hidden state, as (b, h, w, D)."""
    name = case.tower or type(case.build()).__name__
    model = getattr(transformers, name).from_pretrained(folder, dtype=torch.float32)
    grid = (pixels.shape[2] // case.stride, pixels.shape[3] // case.stride)
    inputs: dict[str, Any] = {"pixel_values": pixels}
    if name in ("SiglipVisionModel", "CLIPVisionModel", "ViTModel"):
        inputs["interpolate_pos_encoding"] = True
    if name == "Siglip2VisionModel":
        inputs = naflex_inputs(pixels, grid)
    with torch.no_grad():
        output = model(**inputs, output_hidden_states=True)
    state: Tensor
    if layer == -1 and name != "MobileNetV2Model":
        state = output.last_hidden_state
    else:
        state = output.hidden_states[layer]
    if state.ndim == 4:
        return state.permute(0, 2, 3, 1)
    return state[:, case.prefix :].reshape(len(state), *grid, -1)


def naflex_inputs(pixels: Tensor, grid: tuple[int, int]) -> dict[str, Tensor]:
    """As the library's own image processor cuts pictures, none of the patches padding."""
    from transformers.models.siglip2.image_processing_pil_siglip2 import convert_image_to_patches

    rows = [torch.from_numpy(convert_image_to_patches(p.numpy(), 16)) for p in pixels]
    return {
        "pixel_values": torch.stack(rows),
        "pixel_attention_mask": torch.ones(len(pixels), len(rows[0]), dtype=torch.long),
        "spatial_shapes": torch.tensor([grid] * len(pixels)),
    }


def normalised(teacher: Teacher, images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (teacher.config.mean, teacher.config.std))
    return (images - mean) / std


# -- the same features as transformers ---------------------------------------------------------


@pytest.mark.parametrize("grid", [(4, 4), (2, 3)])
def test_last_layer_is_that_of_transformers(case: Case, saved: Path, grid: tuple[int, int]) -> None:
    teacher = Teacher.from_pretrained(saved)
    images = pictures(grid[0] * case.stride, grid[1] * case.stride)
    features = teacher(images, grid)
    assert features.shape == (2, *grid, teacher.dim)
    assert teacher.config.stride == case.stride
    expected = reference(case, saved, normalised(teacher, images), -1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-5)


def test_intermediate_layer_is_that_of_transformers(case: Case, saved: Path) -> None:
    layer = case.layers[0]
    teacher = Teacher.from_pretrained(saved, layers=(layer,))
    images = pictures(64, 96)
    grid = (64 // teacher.config.stride, 96 // teacher.config.stride)
    expected = reference(case, saved, normalised(teacher, images), layer)
    torch.testing.assert_close(teacher(images, grid), expected, rtol=1e-4, atol=1e-5)


def test_several_layers_are_joined_on_the_coarsest_grid(case: Case, saved: Path) -> None:
    teacher = Teacher.from_pretrained(saved, layers=case.layers)
    images, grid = pictures(64, 96), (64 // case.stride, 96 // case.stride)
    parts = []
    for layer in case.layers:
        part = reference(case, saved, normalised(teacher, images), layer).permute(0, 3, 1, 2)
        if part.shape[-2:] != grid:
            part = F.interpolate(part, grid, mode="bilinear", antialias=True)
        parts.append(part.permute(0, 2, 3, 1))
    expected = torch.cat(parts, dim=-1)
    assert teacher.dim == expected.shape[-1]
    torch.testing.assert_close(teacher(images, grid), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16])
def test_output_stride_dilates_mobilenet(mobilenet: Path, output_stride: int) -> None:
    teacher = Teacher.from_pretrained(mobilenet, output_stride=output_stride)
    model: Any = transformers.MobileNetV2Model.from_pretrained(
        mobilenet, output_stride=output_stride, dtype=torch.float32
    )
    images, grid = pictures(64, 96), (64 // output_stride, 96 // output_stride)
    with torch.no_grad():
        output = model(normalised(teacher, images), output_hidden_states=True)
    expected = output.hidden_states[-1].permute(0, 2, 3, 1)
    torch.testing.assert_close(teacher(images, grid), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.shared
def test_the_shared_teacher_is_that_of_transformers(shared: Path) -> None:
    folder = shared / "teachers" / "mobilenet-v2"
    teacher = Teacher.from_pretrained(folder, output_stride=8)
    model: Any = transformers.MobileNetV2Model.from_pretrained(
        folder, output_stride=8, dtype=torch.float32
    )
    images = pictures(128, 128)
    with torch.no_grad():
        output = model(images * 2 - 1, output_hidden_states=True)
    features = teacher(images, (16, 16))
    assert features.shape == (2, 16, 16, 320)
    expected = output.hidden_states[-1].permute(0, 2, 3, 1)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=2e-4)
    sizes = [tensor.numel() for tensor in teacher.state_dict().values()]
    assert 2 * sum(sizes) < 4e6  # bytes in half precision


@pytest.mark.shared
def test_weights_kept_in_half_precision_come_back_the_same(shared: Path) -> None:
    teacher = Teacher.from_pretrained(shared / "teachers" / "mobilenet-v2")
    weights = [t for name, t in teacher.state_dict().items() if name.endswith("weight")]
    assert all(t.dtype == torch.float32 and torch.equal(t, t.half().float()) for t in weights)


# -- images ------------------------------------------------------------------------------------


def test_another_grid_resizes_the_images(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(**MLP | {"patch_size": 14, "image_size": 42})
    folder = save(transformers.Dinov2Model(config), tmp_path)
    teacher = Teacher.from_pretrained(folder)
    images = pictures(96, 96)  # 6 x 6 patches of 16 px: the teacher's 6 x 6 of 14 px
    smaller = F.interpolate(images, (84, 84), mode="bicubic", antialias=True).clamp(0, 1)
    features = teacher(images, (6, 6))
    assert features.shape == (2, 6, 6, 32)
    assert torch.equal(features, teacher(smaller, (6, 6)))


@pytest.mark.parametrize("name", ["siglip", "mobilenet", "convnext"])
def test_features_do_not_depend_on_the_batch(folders: Callable[[str], Path], name: str) -> None:
    teacher = Teacher.from_pretrained(
        folders(name), output_stride=8 if name == "mobilenet" else None
    )
    grid = (8, 8) if name == "mobilenet" else (4, 4)
    images = pictures(70, 70, 33)  # resized to the grid on the way
    together = teacher(images, grid)
    for count in (1, 2, 3, 4, 7, 16, 32):
        assert torch.equal(teacher(images[:count], grid), together[:count]), count
    assert torch.equal(teacher(images[20:], grid), together[20:])


def test_features_do_not_depend_on_the_batch_in_one_thread(mobilenet: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        teacher = Teacher.from_pretrained(mobilenet, output_stride=8)
        images = pictures(64, 64, 17)
        together = teacher(images, (8, 8))
        for count in (1, 2, 3, 8):
            assert torch.equal(teacher(images[:count], (8, 8)), together[:count]), count
    finally:
        torch.set_num_threads(threads)


def test_autocast_of_the_caller_changes_nothing(case: Case, saved: Path) -> None:
    teacher = Teacher.from_pretrained(saved)
    images, grid = pictures(64, 64), (64 // case.stride, 64 // case.stride)
    plain = teacher(images, grid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(teacher(images, grid), plain)


def test_bfloat16_network_gives_float32_features_nearby(case: Case, saved: Path) -> None:
    grid = (64 // case.stride, 64 // case.stride)
    exact = Teacher.from_pretrained(saved)
    teacher = Teacher.from_pretrained(saved, dtype=torch.bfloat16)
    assert {p.dtype for p in teacher.parameters()} == {torch.bfloat16}
    assert teacher.config == exact.config
    features = teacher(pictures(64, 64), grid)
    assert features.dtype == torch.float32
    expected = exact(pictures(64, 64), grid)
    assert not torch.equal(features, expected)
    assert F.cosine_similarity(features, expected, dim=-1).mean() > 0.99


def test_a_stride_that_is_not_the_networks_is_refused(vit: Path, mobilenet: Path) -> None:
    for folder, grid, message in (
        (vit, (4, 4), "gave 4 patches; a grid of 4x4 has 16"),
        (mobilenet, (4, 4), "gave a map of 1x1; the grid is 4x4"),
    ):
        right = Teacher.from_pretrained(folder)
        wrong = Teacher(dataclasses.replace(right.config, stride=8), right.trunk)
        with pytest.raises(ShapeError, match=message):
            wrong(pictures(32, 32), grid)


# -- what is kept ------------------------------------------------------------------------------


def test_round_trip_through_the_config_gives_the_same_bits(case: Case, saved: Path) -> None:
    teacher = Teacher.from_pretrained(saved, layers=case.layers)
    data = json.loads(json.dumps(dataclasses.asdict(teacher.config)))
    config = TeacherConfig(**data | {key: tuple(data[key]) for key in ("layers", "mean", "std")})
    assert config == teacher.config
    twin = Teacher.from_config(config)
    images, grid = pictures(64, 64), (64 // case.stride, 64 // case.stride)
    assert not torch.equal(twin(images, grid), teacher(images, grid))
    twin.load_state_dict(teacher.state_dict())
    assert twin.weights_hash() == teacher.config.sha256
    assert torch.equal(twin(images, grid), teacher(images, grid))


def test_every_kept_weight_changes_the_features(case: Case, saved: Path) -> None:
    """So nothing lies about that the layers do not need."""
    teacher = Teacher.from_pretrained(saved, layers=case.layers[:1]).trainable_copy()
    grid = (64 // teacher.config.stride, 64 // teacher.config.stride)
    (teacher(pictures(64, 64), grid) ** 2).sum().backward()
    idle = [name for name, p in teacher.named_parameters() if p.grad is None]
    assert not idle


def test_mean_and_std_come_from_the_folder(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    assert Teacher.from_pretrained(folder).config.mean == (0.5, 0.5, 0.5)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": said}))
    assert Teacher.from_pretrained(folder).config.std == (0.4, 0.5, 0.6)
    (folder / "preprocessor_config.json").write_text(json.dumps(said | {"image_mean": [0, 0, 1]}))
    assert Teacher.from_pretrained(folder).config.mean == (0.0, 0.0, 1.0)
    (folder / "preprocessor_config.json").write_text(json.dumps(said | {"do_normalize": False}))
    assert Teacher.from_pretrained(folder).config.std == (1.0, 1.0, 1.0)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": 0.5}))
    with pytest.raises(FormatError, match="image_mean and image_std must be three numbers"):
        Teacher.from_pretrained(folder)


def test_families_without_a_preprocessor_config_have_their_own_mean(
    folders: Callable[[str], Path],
) -> None:
    assert Teacher.from_pretrained(folders("clip")).config.mean[0] == 0.48145466
    assert Teacher.from_pretrained(folders("dinov2")).config.mean[0] == 0.485
    assert Teacher.from_pretrained(folders("siglip")).config.mean[0] == 0.5


def test_architecture_is_only_what_decides_the_network(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    raw = json.loads((folder / "config.json").read_text())
    raw |= {"id2label": {"0": "cat"}, "length_penalty": 1.0, "hidden_act": "relu"}
    (folder / "config.json").write_text(json.dumps(raw))
    architecture = Teacher.from_pretrained(folder).config.architecture
    assert architecture["hidden_act"] == "relu" and architecture["model_type"] == "vit"
    noise = ("id2label", "length_penalty", "architectures", "transformers_version", "dtype")
    assert not any(key in architecture for key in noise)


# -- frozen, and not ---------------------------------------------------------------------------


def test_frozen_under_train(case: Case, saved: Path) -> None:
    teacher = Teacher.from_pretrained(saved)
    outer = torch.nn.Sequential(teacher).train()
    assert outer.training and not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(pictures(64, 64), (64 // case.stride, 64 // case.stride)).requires_grad


def test_trainable_copy_learns_alone_and_without_dropout(case: Case, saved: Path) -> None:
    teacher = Teacher.from_pretrained(saved)
    before = teacher.weights_hash()
    twin = teacher.trainable_copy().train()
    assert not any(module.training for module in twin.modules())
    assert twin.config.sha256 is None
    images, grid = pictures(64, 64), (64 // case.stride, 64 // case.stride)
    optimizer = torch.optim.SGD(twin.parameters(), lr=0.1)
    twin(images, grid).mean().backward()
    optimizer.step()
    assert twin.weights_hash() != before
    assert teacher.weights_hash() == before
    assert not any(p.requires_grad for p in teacher.parameters())


# -- what goes wrong ---------------------------------------------------------------------------


def without(folder: Path, copy: Path, *parts: str) -> Path:
    """A copy of a model folder that lacks the weights whose names contain one of `parts`."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    kept = {k: v for k, v in weights.items() if not any(part in k for part in parts)}
    assert len(kept) < len(weights)
    save_file(kept, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def test_missing_weights_are_an_error_that_names_them(vit: Path, tmp_path: Path) -> None:
    folder = without(vit, tmp_path / "vit", "layer.1.")
    with pytest.raises(FormatError, match=r"lacks 16 of the weights .* layers\.1\..*, \.\.\.; get"):
        Teacher.from_pretrained(folder)
    Teacher.from_pretrained(folder, layers=(1,))  # which does not need them


def test_weights_that_no_layer_needs_may_be_missing(vit: Path, tmp_path: Path) -> None:
    folder = without(vit, tmp_path / "vit", "classifier", "vit.layernorm.")
    Teacher.from_pretrained(folder, layers=(3,))
    with pytest.raises(FormatError, match=r"lacks 2 .*: layernorm\.bias, layernorm\.weight; get"):
        Teacher.from_pretrained(folder)


def test_weights_of_another_shape_are_an_error(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 40}))
    with pytest.raises(FormatError, match="weights of teacher .* cannot be loaded"):
        Teacher.from_pretrained(folder)


@pytest.mark.parametrize("keep", [0, 100, 5000])
def test_damaged_weights_are_an_error(vit: Path, tmp_path: Path, keep: int) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(FormatError, match="cannot be loaded"):
        Teacher.from_pretrained(folder)


def test_absent_weights_are_an_error(vit: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(vit, tmp_path / "vit")
    (folder / "model.safetensors").unlink()
    with pytest.raises(FormatError, match="cannot be loaded"):
        Teacher.from_pretrained(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "bert"}', "model_type 'bert'; a teacher can be: clip, convnext, dinov2"),
        ("{}", "model_type None; a teacher can be"),
        ("[1]", "holds a list; a mapping is needed"),
        ('{"model', "is not JSON"),
        ('{"model_type": "vit", "hidden_size": "wide"}', "refuses the teacher's architecture"),
    ],
)
def test_a_config_that_is_no_teachers_is_an_error(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(FormatError, match=message):
        Teacher.from_pretrained(tmp_path)


def test_a_folder_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="has no config.json"):
        Teacher.from_pretrained(tmp_path)


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no teacher '.*nowhere': not a folder"):
        Teacher.from_pretrained(tmp_path / "nowhere")


def test_a_hub_that_cannot_be_reached_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(NotFoundError, match="no teacher 'nobody/nothing': not a folder"):
        Teacher.from_pretrained("nobody/nothing")


def test_a_hub_model_gives_its_commit_and_may_lack_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Hub of one file, laid out as the Hub's cache is."""
    commit = tmp_path / "snapshots" / "c0ffee"
    commit.mkdir(parents=True)
    (commit / "config.json").write_text('{"model_type": "vit"}')

    def download(repo: str, name: str, revision: str | None) -> str:
        if (commit / name).is_file():
            return str(commit / name)
        raise EntryNotFoundError.__new__(EntryNotFoundError)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert read_model_config("some/model", None) == ({"model_type": "vit"}, "c0ffee")
    assert find_file("some/model", "preprocessor_config.json", "c0ffee") is None


def test_layers_and_strides_that_a_model_lacks_are_refused(vit: Path, mobilenet: Path) -> None:
    with pytest.raises(RangeError, match="vit has hidden states 0 to 3, or -4 to -1"):
        Teacher.from_pretrained(vit, layers=(4,))
    with pytest.raises(RangeError, match="layers is empty"):
        Teacher.from_pretrained(vit, layers=())
    with pytest.raises(RangeError, match="only mobilenet_v2 can be dilated"):
        Teacher.from_pretrained(vit, output_stride=8)
    with pytest.raises(RangeError, match="output_stride is 4; mobilenet_v2 takes 8, 16 or 32"):
        Teacher.from_pretrained(mobilenet, output_stride=4)


def test_a_config_of_another_width_is_refused(vit: Path) -> None:
    config = Teacher.from_pretrained(vit).config
    with pytest.raises(FormatError, match="teacher.dim is 7; layers .* are 32 wide"):
        Teacher.from_config(dataclasses.replace(config, dim=7))


def test_load_named_checks_the_weights(mobilenet: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(mobilenet, tmp_path / "mobilenet")
    teacher = Teacher.from_pretrained(folder, output_stride=8, layers=(5, -1))
    again = load_named(teacher.config)
    assert again.config == teacher.config
    assert torch.equal(again(pictures(64, 64), (8, 8)), teacher(pictures(64, 64), (8, 8)))
    assert load_named(dataclasses.replace(teacher.config, sha256=None)).config == teacher.config
    weights = load_file(folder / "model.safetensors")
    next(v for k, v in weights.items() if k.endswith("layer.3.reduce_1x1.convolution.weight")).add_(
        1
    )
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(FormatError, match="has weights of hash .*; the config names"):
        load_named(teacher.config)


def test_import_leaves_transformers_alone_and_loading_says_nothing(
    folders: Callable[[str], Path],
) -> None:
    """One of the two has a text tower, the other a classifier, that the teacher does not read."""
    code = """
import sys
from semhitok.model.teacher import Teacher
assert "transformers" not in sys.modules
for folder in sys.argv[1:]:
    Teacher.from_pretrained(folder)
"""
    command = [sys.executable, "-c", code, *(str(folders(name)) for name in ("siglip", "vit"))]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


# -- the same weights read elsewhere -----------------------------------------------------------


def test_reading_other_layers_shares_the_weights_at_the_own_stride(mobilenet: Path) -> None:
    teacher = Teacher.from_pretrained(mobilenet, output_stride=8)
    other = teacher.reading((1, 11))
    expected = Teacher.from_pretrained(mobilenet, layers=(1, 11))
    assert other.widths == (8, 24) and other.config.stride == 16
    assert torch.equal(other(pictures(64, 64), (4, 4)), expected(pictures(64, 64), (4, 4)))
    shapes = [tuple(layer.shape) for layer in other.maps(pictures(64, 96))]
    assert shapes == [(2, 8, 16, 24), (2, 24, 4, 6)]


def test_maps_of_a_transformer_leave_out_its_class_token(vit: Path) -> None:
    teacher = Teacher.from_pretrained(vit, layers=(1, -1))
    images = pictures(48, 32)
    joined = torch.cat(teacher.maps(images), dim=1).permute(0, 2, 3, 1)
    assert torch.equal(joined, teacher(images, (3, 2)))


def test_layers_that_were_cut_cannot_be_read(vit: Path) -> None:
    shallow = Teacher.from_pretrained(vit, layers=(2,))
    with pytest.raises(RangeError, match="was cut after its hidden state 2"):
        shallow.reading((3,))
    with pytest.raises(RangeError, match="was cut after its hidden state 3"):
        Teacher.from_pretrained(vit, layers=(3,)).reading((-1,))  # its norm was left out
