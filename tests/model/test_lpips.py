import hashlib
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from semhitok.errors import FormatError, NotFoundError, ShapeError
from semhitok.model.lpips import (
    ENVIRONMENT_VARIABLE,
    LPIPS,
    TRUNK_NAMES,
    TRUNKS,
    SqueezeNet,
    Trunk,
    _unit,
    find_judge,
    find_lpips,
    lpips_hash,
)

TRUNK_FILE, HEADS_FILE = TRUNKS["squeeze"].file, TRUNKS["squeeze"].heads_file


class TorchvisionFire(nn.Module):
    def __init__(self, width_in, squeezed, expanded):
        super().__init__()
        self.squeeze = nn.Conv2d(width_in, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x):
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], 1)


def torchvision_features(net):
    """`features` of torchvision's alexnet, squeezenet1_1 and vgg16, as its source has them."""
    if net == "alex":
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(64, 192, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(3, 2)),
            *(nn.Conv2d(192, 384, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(384, 256, 3, 1, 1), nn.ReLU()),
            *(nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(3, 2)),
        )
    if net == "squeeze":
        return nn.Sequential(
            *(nn.Conv2d(3, 64, 3, 2), nn.ReLU(), nn.MaxPool2d(3, 2, ceil_mode=True)),
            *(TorchvisionFire(64, 16, 64), TorchvisionFire(128, 16, 64)),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *(TorchvisionFire(128, 32, 128), TorchvisionFire(256, 32, 128)),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            *(TorchvisionFire(256, 48, 192), TorchvisionFire(384, 48, 192)),
            *(TorchvisionFire(384, 64, 256), TorchvisionFire(512, 64, 256)),
        )
    layers, width_in = [], 3
    for width in "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M".split():
        if width == "M":
            layers.append(nn.MaxPool2d(2, 2))
        else:
            layers += [nn.Conv2d(width_in, int(width), 3, padding=1), nn.ReLU()]
            width_in = int(width)
    return nn.Sequential(*layers)


def save_judge(features, heads, folder, name):
    """Random weights as the published files have them, classifier and half precision included."""
    weights = {f"features.{key}": value.half() for key, value in features.state_dict().items()}
    weights["classifier.6.bias"] = torch.zeros(1000)
    save_file(weights, folder / TRUNKS[name].file)
    save_file(
        {f"lin{n}.model.1.weight": head for n, head in enumerate(heads)},
        folder / TRUNKS[name].heads_file,
    )


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "judges"


@pytest.fixture(scope="module")
def lpips(folder):
    return LPIPS.load(folder)


@pytest.mark.parametrize("name", TRUNK_NAMES)
def test_each_trunk_measures_as_torchmetrics_does(name, tmp_path, monkeypatch):
    theirs = pytest.importorskip("torchmetrics.functional.image.lpips")
    torch.manual_seed(0)
    features = torchvision_features(name)
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d):  # so that features do not fade to nothing on their way
            layer.weight.data = nn.init.kaiming_normal_(layer.weight).half().float()
            layer.bias.data = nn.init.normal_(layer.bias, std=0.1).half().float()
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda net, pretrained: features)
    reference = theirs._LPIPS(pretrained=False, net=name)
    heads = [nn.init.uniform_(lin.model[-1].weight) for lin in reference.lins]
    save_judge(features, heads, tmp_path, name)
    a, b = torch.rand(2, 3, 3, 50, 43)
    with torch.inference_mode():
        expected = reference(a, b, normalize=True).flatten()
        distance = LPIPS.load(tmp_path, name)(a, b)
    assert distance.shape == (3,) and expected.min() > 0.1
    assert torch.allclose(distance, expected, rtol=1e-5)


@pytest.mark.parametrize("name", TRUNK_NAMES)
def test_stages_have_the_widths_of_the_heads_and_the_sides_bear_them(name):
    trunk, side = Trunk(name), TRUNKS[name].min_side
    widths = [stage.shape[1] for stage in trunk.stages(torch.rand(1, 3, side, side))]
    assert widths == list(TRUNKS[name].stages.values())
    assert len(trunk.features) == max(TRUNKS[name].stages) + 1
    with pytest.raises(RuntimeError):  # of torch: a map of no size
        trunk.features(torch.rand(1, 3, side - 1, side))
    with pytest.raises(ShapeError, match=f"picture is {side - 1}x{side}; both sides need {side}"):
        trunk.stages(torch.rand(1, 3, side - 1, side))


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
        features, logits = network.classify(photos)
    assert features.shape == (40, 512)
    assert logits.shape == (40, 1000)
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.5  # published: 0.58


@pytest.mark.parametrize("name", TRUNK_NAMES)
def test_missing_files_are_named_together(tmp_path, name):
    kind = TRUNKS[name]
    with pytest.raises(NotFoundError, match=f"{kind.file} and {kind.heads_file}") as error:
        LPIPS.load(tmp_path, name)
    assert "\n" not in str(error.value)
    with pytest.raises(NotFoundError, match=kind.file):
        lpips_hash(tmp_path, name)


def test_what_a_folder_holds_is_found(tmp_path):
    with pytest.raises(NotFoundError, match="alexnet.safetensors and lpips_v0.1_alex") as error:
        find_lpips(tmp_path)
    assert "vgg16.safetensors" in str(error.value) and "\n" not in str(error.value)
    save_judge(Trunk("alex").features, [], tmp_path, "alex")
    (tmp_path / TRUNKS["vgg"].heads_file).touch()
    assert find_lpips(tmp_path) == ["alex", "vgg"]
    with pytest.raises(NotFoundError, match="has no vgg16.safetensors; LPIPS on VGG16 is"):
        LPIPS.load(tmp_path, "vgg")


def test_the_hash_is_of_both_files(tmp_path):
    kind, found = TRUNKS["alex"], set()
    for contents in ((b"a", b"b"), (b"c", b"b"), (b"a", b"d")):
        for name, content in zip((kind.file, kind.heads_file), contents, strict=True):
            (tmp_path / name).write_bytes(content)
        found.add(lpips_hash(tmp_path, "alex"))
    assert len(found) == 3
    assert hashlib.sha256(b"ad").hexdigest() in found


def test_another_network_in_the_file_is_refused(tmp_path):
    save_judge(Trunk("alex").features, [], tmp_path, "alex")
    shutil.copyfile(tmp_path / TRUNKS["alex"].file, tmp_path / TRUNKS["vgg"].file)
    with pytest.raises(FormatError, match="vgg16.safetensors is another network"):
        LPIPS.load(tmp_path, "vgg")
    with pytest.raises(FormatError, match="5 tensors differ, first '0.weight'"):
        LPIPS.load(tmp_path, "alex")


@pytest.mark.shared
def test_other_weights_are_refused(tmp_path, folder):
    (tmp_path / TRUNK_FILE).write_bytes(b"not safetensors")
    with pytest.raises(FormatError, match="is not a safetensors file"):
        SqueezeNet.load(tmp_path)
    shutil.copyfile(folder / TRUNK_FILE, tmp_path / TRUNK_FILE)
    save_file({"lin0.model.1.weight": torch.zeros(1, 64, 1, 1)}, tmp_path / HEADS_FILE)
    with pytest.raises(FormatError, match="6 tensors differ, first '1.weight'"):
        LPIPS.load(tmp_path)
    weights = load_file(folder / TRUNK_FILE)
    save_file({k: v for k, v in weights.items() if "classifier" not in k}, tmp_path / TRUNK_FILE)
    with pytest.raises(FormatError, match="2 tensors differ, first 'classifier.1.bias'"):
        SqueezeNet.load(tmp_path)


def test_the_folder_given_comes_before_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)
    assert find_judge() is None
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(tmp_path / "environment"))
    assert find_judge() == tmp_path / "environment"
    assert find_judge(tmp_path) == tmp_path
