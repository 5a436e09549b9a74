import shutil

import pytest
import torch
from safetensors.torch import save_file

from semhitok.errors import FormatError, NotFoundError, ShapeError
from semhitok.model.lpips import (
    ENVIRONMENT_VARIABLE,
    HEADS_FILE,
    LPIPS,
    MIN_SIDE,
    TRUNK_FILE,
    SqueezeNet,
    _unit,
    find_judge,
    judge_hash,
)


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "judges"


@pytest.fixture(scope="module")
def lpips(folder):
    return LPIPS.load(folder)


@pytest.mark.shared
def test_lpips_gives_the_published_example(lpips):
    torch.manual_seed(123)  # as torchmetrics' docstring, which prints 0.1008 (inputs in [-1, 1])
    a, b = (torch.rand(10, 3, 100, 100) * 2 - 1 for _ in range(2))
    distance = lpips((a + 1) / 2, (b + 1) / 2)
    assert distance.shape == (10,)
    assert float(distance.mean()) == pytest.approx(0.10079, abs=1e-5)


@pytest.mark.shared
def test_lpips_is_zero_for_equal_pictures_and_grows_with_noise(lpips, images):
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    little, much = ((images + s * noise).clamp(0, 1) for s in (0.02, 0.2))
    assert lpips(images, images).abs().max() == 0
    assert (lpips(images, much) > lpips(images, little)).all()
    assert (lpips(images, little) > 0).all()


@pytest.mark.shared
def test_lpips_teaches_the_picture_and_not_itself(lpips, images):
    flat = torch.zeros_like(images).requires_grad_()  # the hardest case: features of no variety
    lpips(images, flat).sum().backward()
    assert flat.grad.isfinite().all()
    assert flat.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in lpips.parameters())


def test_features_of_no_length_have_a_gradient():
    features = torch.zeros(1, 4, 2, 2, requires_grad=True)
    _unit(features).sum().backward()
    assert features.grad.isfinite().all()


@pytest.mark.shared
def test_squeezenet_classifies_photos(folder, shared):
    from semhitok.data.sources import ParquetSource
    from semhitok.images import ImagePolicy, to_tensor

    source = ParquetSource(shared / "data" / "imagenet1k-dev.parquet")
    network = SqueezeNet.load(folder)
    policy, indices = ImagePolicy(224, "square", 1), range(0, 1000, 25)
    photos = torch.stack([to_tensor(policy.apply(source.read(n))) for n in indices])
    labels = torch.tensor(source.labels())[list(indices)]
    with torch.inference_mode():
        logits = network.logits(photos)
        assert network.features(photos[:2]).shape == (2, 512)
    assert logits.shape == (40, 1000)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.5  # published: 0.58


@pytest.mark.shared
def test_smallest_side(lpips):
    least = torch.rand(1, 3, MIN_SIDE, MIN_SIDE)
    assert lpips(least, 1 - least) > 0
    with pytest.raises(ShapeError, match="picture is 16x17; both sides need 17 px"):
        lpips(least[:, :, :16], least[:, :, :16])


def test_missing_files_are_named_together(tmp_path):
    with pytest.raises(NotFoundError, match=f"{TRUNK_FILE} and {HEADS_FILE}") as error:
        LPIPS.load(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(NotFoundError, match=TRUNK_FILE):
        judge_hash(tmp_path)


@pytest.mark.shared
def test_other_weights_are_refused(tmp_path, folder):
    (tmp_path / TRUNK_FILE).write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match="is not a safetensors file"):
        SqueezeNet.load(tmp_path)
    shutil.copyfile(folder / TRUNK_FILE, tmp_path / TRUNK_FILE)
    save_file({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / HEADS_FILE)
    with pytest.raises(FormatError, match="6 tensors differ, first '1.weight'"):
        LPIPS.load(tmp_path)


def test_the_folder_given_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert find_judge() is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "environment"))
    assert find_judge() == tmp_path / "environment"
    assert find_judge(tmp_path) == tmp_path
