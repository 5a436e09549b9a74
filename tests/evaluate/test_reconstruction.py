import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, ImageError, NotFoundError, RangeError
from semhitok.evaluate.adapters import Adapter
from semhitok.evaluate.inception import Inception, weights_hash
from semhitok.evaluate.metrics import psnr
from semhitok.evaluate.reconstruction import evaluate, evenly_spaced
from semhitok.evaluate.report import Report
from semhitok.images import to_pil, to_tensor
from semhitok.model.lpips import ENVIRONMENT_VARIABLE, LPIPS, TRUNKS, lpips_hash


class GreyTokenizer(Adapter):
    """The mean grey of a 4 px patch in 256 steps: K = 16 coarse steps of m = 16 fine ones."""

    name, multiple = "grey", 4

    def __init__(self):
        self.batch_sizes = []

    def encode(self, images):
        self.batch_sizes.append(len(images))
        return F.avg_pool2d(images, 4).mean(dim=1).mul(255).round().long()

    def decode(self, encoded):
        offset = 0.0009  # below half a level: gone after rounding to 8 bits
        grey = encoded[:, None].expand(-1, 3, -1, -1) / 255 + offset
        return F.interpolate(grey, scale_factor=4.0).clamp(0, 1)

    def bits(self, encoded):
        return [8.0 * encoded[0].numel()] * len(encoded)

    def describe(self):
        return {"hash": "0123abcd"}

    def codes(self, encoded):
        return encoded // 16, encoded % 16

    def codebook_sizes(self):
        return 16, 16


class Identity(Adapter):
    name = "identity"

    def encode(self, images):
        return images

    def decode(self, encoded):
        return encoded

    def bits(self, encoded):
        return [24.0 * encoded[0, 0].numel()] * len(encoded)


class ListSource(ImageSource):
    """Pictures in memory; an exception stands for one that cannot be read."""

    def __init__(self, *pictures):
        self.pictures, self.name = pictures, "list"

    def __len__(self):
        return len(self.pictures)

    def key(self, index):
        return f"picture-{index}"

    def read_bytes(self, index):
        raise NotImplementedError

    def read(self, index):
        if isinstance(self.pictures[index], Exception):
            raise self.pictures[index]
        return self.pictures[index]

    def _identity(self):
        return [str(len(self))]


@pytest.fixture(autouse=True)
def no_judge(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT_VARIABLE, raising=False)


@pytest.fixture
def photos(images):
    return ListSource(*map(to_pil, images))


@pytest.fixture
def tok():
    return GreyTokenizer()


def test_figures_are_those_of_the_pictures(tok, photos):
    report = evaluate(tok, photos, resolution=32, batch_size=3)
    assert tok.batch_sizes == [3, 1]
    originals = torch.stack([to_tensor(photos.read(n)) for n in range(4)])
    grey = F.avg_pool2d(originals, 4).mean(dim=1, keepdim=True).mul(255).round().div(255)
    back = F.interpolate(grey, scale_factor=4).expand(-1, 3, -1, -1)
    figures = report.figures
    assert figures["psnr_db"]["mean"] == pytest.approx(
        float(psnr(originals, back).mean()), abs=1e-3
    )
    assert 0 < figures["ssim"]["mean"] < 1
    assert "lpips_squeeze" not in figures
    assert (figures["pictures"], figures["failed"]) == (4, {})
    ids = grey.mul(255).round().long()
    assert figures["codes"]["patches"] == 4 * 64
    assert figures["codes"]["flat_usage"] == len(ids.unique()) / 256
    assert figures["codes"]["semantic_usage"] == len((ids // 16).unique()) / 16


def test_reconstructions_are_rounded_to_8_bits(tok):
    flat = ListSource(Image.new("RGB", (32, 32), (77, 77, 77)))
    figures = evaluate(tok, flat, resolution=32).figures
    assert figures["psnr_db"]["mean"] == pytest.approx(100, abs=1e-3)


def test_rate(tok, photos):
    report = evaluate(tok, photos, resolution=32)
    rate = report.figures["rate"]
    stored = rate.pop("zstd_bytes_per_picture")
    entropy = report.figures["codes"]["joint_entropy"]
    assert rate == {
        "bits_per_patch": 8,
        "bits_per_pixel": 0.5,
        "patches_per_picture": 64,
        "bits_per_picture": 512,
        "bytes_per_picture": 64,
        "entropy_bytes_per_picture": pytest.approx(entropy * 64 / 8),
    }
    assert 0 < stored < 2 * 64 + 20


def test_protocol_says_what_was_done(tok, photos):
    report = evaluate(tok, photos, resolution=24, max_images=2)
    protocol = report.protocol
    assert protocol["data"] == {
        "name": "list",
        "pictures": 4,
        "selection": "2, evenly spaced",
        "fingerprint": photos.fingerprint(),
    }
    assert protocol["model"] == {"name": "grey", "hash": "0123abcd"}
    assert "short side to 24" in protocol["pixels"] and "square" in protocol["pixels"]
    assert "rounded to 8 bits" in protocol["value_range"]
    assert protocol["measured_on"] == "cpu"
    assert protocol["versions"]["torch"] == torch.__version__
    assert "no judge" in protocol["metrics"]["lpips_squeeze"]
    assert Report.from_json(report.to_json()) == report


def test_pictures_of_many_sizes_keep_their_shape(tok, photos):
    wide = photos.read(0).resize((50, 33))
    source = ListSource(photos.read(0), wide, wide, photos.read(1))
    report = evaluate(tok, source, resolution=None, crop="grid")
    assert tok.batch_sizes == [1, 2, 1]
    assert report.figures["rate"]["patches_per_picture"] == (64 + 2 * 12 * 8 + 64) / 4


def test_failed_pictures_are_named_and_the_rest_counted(tok, photos):
    tiny = Image.new("RGB", (16, 16))
    broken = ImageError("picture-1: broken picture")
    source = ListSource(photos.read(0), broken, tiny, photos.read(1))
    calls = []
    report = evaluate(
        tok, source, resolution=None, progress=lambda done, total: calls.append((done, total))
    )
    assert report.figures["pictures"] == 2
    failed = report.figures["failed"]
    assert list(failed) == ["picture-1", "picture-2"]
    assert failed["picture-1"] == "broken picture"
    assert "picture is 16x16 px; to be judged it needs 17" in failed["picture-2"]
    assert calls[-1] == (4, 4)


def test_nothing_to_measure(tok):
    with pytest.raises(DataError, match=r"list: no picture could be measured \(broken\)"):
        evaluate(tok, ListSource(ImageError("broken")), resolution=32)
    with pytest.raises(DataError, match="the source is empty"):
        evaluate(tok, ListSource(), resolution=32)


def test_impossible_requests(tok, photos):
    with pytest.raises(RangeError, match="max_images is 0"):
        evaluate(tok, photos, resolution=32, max_images=0)
    with pytest.raises(RangeError, match="size is 30"):
        evaluate(tok, photos, resolution=30)


def test_each_picture_has_its_figures(tok, photos):
    report = evaluate(tok, photos, resolution=32, batch_size=3)
    columns = report.pictures
    assert columns["key"] == [photos.key(n) for n in range(4)]
    mean = sum(columns["psnr_db"]) / 4
    assert mean == pytest.approx(report.figures["psnr_db"]["mean"], abs=1e-5)


def test_adapters_that_are_compared_see_the_same_pictures(tok, photos):
    wide = ListSource(photos.read(0).resize((52, 36)))
    report = evaluate(tok, wide, resolution=None, crop="grid", multiple=16)
    assert report.figures["rate"]["patches_per_picture"] == 12 * 8
    assert "multiples of 16" in report.protocol["pixels"]


def test_ms_ssim_of_pictures_that_are_large_enough(tok, photos):
    large = ListSource(photos.read(0).resize((192, 176)))
    report = evaluate(tok, large, resolution=None, crop="grid")
    assert 0 < report.figures["ms_ssim"]["mean"] < 1
    assert report.protocol["metrics"]["ms_ssim"] == "five scales"


def test_a_folder_without_judge(tok, photos, tmp_path):
    with pytest.raises(NotFoundError, match="squeezenet1_1.safetensors"):
        evaluate(tok, photos, resolution=32, judge=tmp_path)


@pytest.fixture
def alex(tmp_path):
    """A folder with LPIPS on an AlexNet of random weights."""
    torch.manual_seed(0)
    network, kind = LPIPS("alex"), TRUNKS["alex"]
    heads = {f"lin{n}.model.1.weight": h.weight.abs() for n, h in enumerate(network.heads)}
    save_file(network.trunk.state_dict(), tmp_path / kind.file)
    save_file(heads, tmp_path / kind.heads_file)
    return tmp_path


def test_lpips_on_another_trunk(tok, photos, alex):
    report = evaluate(tok, photos, resolution=32, lpips=alex)
    originals = torch.stack([to_tensor(photos.read(n)) for n in range(4)])
    back = tok.decode(tok.encode(originals)).mul(255).round().div(255)
    expected = LPIPS.load(alex, "alex")(originals, back)
    assert expected.min() > 0
    assert report.pictures["lpips_alex"] == pytest.approx(expected.tolist(), abs=1e-5)
    metrics = report.protocol["metrics"]
    assert metrics["lpips_alex"].startswith("AlexNet (ImageNet-1k) and LPIPS heads 0.1; weights ")
    assert lpips_hash(alex, "alex") in metrics["lpips_alex"]
    assert "no judge" in metrics["lpips_squeeze"] and "lpips_vgg" not in metrics


def test_pictures_too_small_for_a_trunk_are_named(tok, photos, alex):
    source = ListSource(photos.read(0), Image.new("RGB", (30, 24)))
    assert not evaluate(tok, source, resolution=None, crop="grid").figures["failed"]
    failed = evaluate(tok, source, resolution=None, crop="grid", lpips=alex).figures["failed"]
    assert "picture is 24x28 px; to be judged it needs 31" in failed["picture-1"]


def test_a_folder_without_lpips(tok, photos, tmp_path):
    with pytest.raises(NotFoundError, match="has no weights of LPIPS; give a folder with alexnet"):
        evaluate(tok, photos, resolution=32, lpips=tmp_path)


@pytest.mark.shared
def test_the_judge_gives_its_own_lpips_once(tok, photos, shared):
    judges = shared / "judges"
    both = evaluate(tok, photos, resolution=32, judge=judges, lpips=judges)
    alone = evaluate(tok, photos, resolution=32, lpips=judges)
    assert len(both.pictures["lpips_squeeze"]) == 4
    assert both.pictures["lpips_squeeze"] == alone.pictures["lpips_squeeze"]
    texts = [report.protocol["metrics"]["lpips_squeeze"] for report in (both, alone)]
    assert texts[0] == texts[1] and lpips_hash(judges) in texts[0]


@pytest.mark.shared
def test_photos_with_the_judge(tok, shared):
    from semhitok.data.sources import ParquetSource

    source = ParquetSource(shared / "data" / "imagenet1k-dev.parquet")
    report = evaluate(tok, source, resolution=64, max_images=6, judge=shared / "judges")
    assert 0.3 < report.figures["lpips_squeeze"]["mean"] < 1.2  # grey mush
    assert report.protocol["metrics"]["lpips_squeeze"].startswith("SqueezeNet 1.1")
    figures = report.figures
    assert 0 < figures["judge_cosine"]["mean"] < 1 and figures["fd_judge"] > 0
    assert figures["judge_top1"]["mean"] <= figures["judge_top1_original"]["mean"] <= 1


@pytest.mark.shared
def test_a_perfect_tokenizer_keeps_all_that_the_judge_sees(shared):
    from semhitok.data.sources import ParquetSource

    source = ParquetSource(shared / "data" / "imagenet1k-dev.parquet")
    figures = evaluate(
        Identity(), source, resolution=128, max_images=6, judge=shared / "judges"
    ).figures
    assert figures["judge_top1_kept"] == figures["judge_agreement"]["mean"] == 1
    assert figures["lpips_squeeze"]["mean"] == figures["fd_judge"] == pytest.approx(0, abs=1e-4)
    assert "codes" not in figures


def test_rfid_of_equal_pictures_is_zero(photos, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "inception.safetensors"
    save_file(Inception().state_dict(), path)
    report = evaluate(Identity(), photos, resolution=32, inception=path)
    assert report.figures["rfid"] == pytest.approx(0, abs=1e-4)
    assert weights_hash(path) in report.protocol["metrics"]["rfid"]


def test_evenly_spaced():
    assert evenly_spaced(10, 3) == [0, 3, 6]
    assert evenly_spaced(3, None) == evenly_spaced(3, 9) == [0, 1, 2]
