from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from semhitok.errors import FormatError, NotFoundError
from semhitok.evaluate import inception
from semhitok.evaluate.inception import Inception, find_inception, resize_like_tensorflow


def seeded_weights() -> dict[str, Tensor]:
    """Random weights, by name, under which no layer dies or explodes."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, tensor in sorted(Inception().state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        if name.endswith("running_var"):
            weights[name] = torch.rand(tensor.shape, generator=generator) + 0.5
        elif tensor.ndim == 4:
            inputs = tensor[0].numel()
            weights[name] = torch.randn(tensor.shape, generator=generator) * (2 / inputs) ** 0.5
        else:
            noise = torch.randn(tensor.shape, generator=generator)
            weights[name] = 1 + 0.1 * noise if name.endswith("bn.weight") else 0.1 * noise
    return weights


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inception") / "weights.safetensors"
    save_file(seeded_weights(), path)
    return path


# What FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 gives ('2048'), with these weights,
# for the pictures that follow one another from the generator: mean, first eight, last four.
GOLDEN: dict[tuple[int, int], tuple[float, list[float], list[float]]] = {
    (64, 64): (
        1.0659816,
        [2.91752, 0.0, 1.30617, 0.86285, 0.4368, 0.64904, 0.32201, 0.0],
        [2.53285, 0.0, 0.0, 0.93057],
    ),
    (128, 96): (
        1.2049955,
        [3.17068, 0.0, 1.43218, 0.99112, 0.48883, 0.74771, 0.38819, 0.0],
        [3.02093, 0.0, 0.0, 0.92665],
    ),
    (300, 320): (
        1.2248943,
        [3.23617, 0.0, 1.43688, 0.94871, 0.58537, 0.76106, 0.37389, 0.0],
        [3.18919, 0.0, 0.0, 1.04467],
    ),
}


def test_it_is_torch_fidelitys_network(file: Path) -> None:
    network = Inception.load(file)
    generator = torch.Generator().manual_seed(1)
    for size, (mean, first, last) in GOLDEN.items():
        levels = torch.randint(0, 256, (2, 3, *size), generator=generator, dtype=torch.uint8)
        features = network(levels.float() / 255)
        assert features.shape == (2, 2048)
        assert float(features.mean()) == pytest.approx(mean, abs=1e-5)
        assert features[0, :8].tolist() == pytest.approx(first, abs=2e-5)
        assert features[1, -4:].tolist() == pytest.approx(last, abs=2e-5)


def test_resize_has_its_corner_at_zero() -> None:
    row = torch.tensor([0.0, 10.0]).view(1, 1, 1, 2).expand(1, 1, 2, 2)
    assert resize_like_tensorflow(row, 4)[0, 0, 0].tolist() == [0, 5, 10, 10]


def test_it_also_reads_a_torch_file(file: Path, tmp_path: Path) -> None:
    weights = seeded_weights() | {"fc.weight": torch.zeros(1008, 2048)}
    torch.save(weights, tmp_path / "weights.pth")
    loaded, same = Inception.load(tmp_path / "weights.pth"), Inception.load(file)
    for ours, theirs in zip(loaded.parameters(), same.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no file"):
        Inception.load(tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(FormatError, match="holds no weights"):
        Inception.load(tmp_path / "text.pth")
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(FormatError, match="not FID-Inception: .* first 'Conv2d_1a_3x3.conv.weight"):
        Inception.load(tmp_path / "other.pth")


def test_a_downloaded_file_is_checked_by_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "given").write_bytes(b"weights")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(inception, "WEIGHTS_URL", (tmp_path / "given").as_uri())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.delenv(inception.ENVIRONMENT_VARIABLE, raising=False)
    with pytest.raises(FormatError, match="invalid hash"):
        inception.download()
    assert find_inception() is None
    monkeypatch.setattr(inception, "WEIGHTS_SHA256_START", digest[:8])
    path = inception.download()
    assert path.read_bytes() == b"weights" and find_inception() == path
    assert inception.weights_hash(path) == digest
    monkeypatch.setattr(inception, "WEIGHTS_URL", (tmp_path / "gone" / "given2").as_uri())
    with pytest.raises(NotFoundError, match="cannot be fetched"):
        inception.download()
