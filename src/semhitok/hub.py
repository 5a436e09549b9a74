"""Model folders (contract C6): bundled ones, local ones, and those of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from semhitok.errors import FormatError, NotFoundError, near_matches
from semhitok.files import storage_error, write_file
from semhitok.model import SemHiTok, Teacher, TokenizerConfig
from semhitok.model.config import ALL_PARTS, Part
from semhitok.model.teacher import load_named
from semhitok.model.tokenizer import tensors_hash

CONFIG, WEIGHTS, CARD, METRICS = "config.json", "model.safetensors", "README.md", "metrics.json"
TRUNK = "semantic.trunk."


def bundled_models() -> list[str]:
    """Names of the models that come with the package."""
    zoo = resources.files("semhitok") / "zoo"
    if not zoo.is_dir():
        return []
    return sorted(f.name for f in zoo.iterdir() if f.is_dir() and (f / CONFIG).is_file())


def resolve(name: str | Path, revision: str | None = None) -> Path:
    """Folder of a bundled model, a local one, or a snapshot of one of the Hub.

    Raises:
        NotFoundError: there is no such model.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    if str(name) in bundled_models():
        return Path(str(resources.files("semhitok") / "zoo" / str(name)))
    if str(name).count("/") != 1 or folder.is_absolute():
        raise NotFoundError(
            f"there is no model {str(name)!r}{near_matches(str(name), bundled_models())}; a "
            "folder, or a Hub id 'owner/name', will do as well"
        )
    return snapshot(str(name), revision, [CONFIG, WEIGHTS, CARD, METRICS])


def snapshot(repo_id: str, revision: str | None = None, files: list[str] | None = None) -> Path:
    """A model of the Hub on this machine, or those files of it.

    Raises:
        NotFoundError: there is none, or the Hub cannot be reached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo_id, revision=revision, allow_patterns=files))
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise NotFoundError(
            f"no model {repo_id!r}: not a folder, and the Hub gives none ({reason}); bundled: "
            f"{', '.join(bundled_models())}"
        ) from error


def read_config(folder: Path) -> TokenizerConfig:
    """The configuration in a model folder.

    Raises:
        FormatError: it is missing, is not JSON, or says something that cannot be.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FormatError(f"{folder} has no {CONFIG}; a model folder has {CONFIG} and {WEIGHTS}")
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}); get a whole copy of it") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds {type(data).__name__}; a mapping is needed")
    return TokenizerConfig.from_dict(data)


def read_metrics(folder: Path) -> dict[str, Any]:
    """`metrics.json` of a model folder; empty where there is none."""
    path = folder / METRICS
    if not path.is_file():
        return {}
    try:
        metrics: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON ({error}); get a whole copy of it") from error
    return metrics


def load(
    name: str | Path, *, parts: Sequence[Part] = ALL_PARTS, revision: str | None = None
) -> SemHiTok:
    """See `SemHiTok.from_pretrained`."""
    for part in parts:
        if part not in ALL_PARTS:
            raise NotFoundError(f"there is no part {part!r}; allowed: {', '.join(ALL_PARTS)}")
    folder = resolve(name, revision)
    config = read_config(folder)
    external = None
    if "encode" in parts and not config.semantic.bundled and config.semantic.trunk == "frozen":
        external = load_named(config.semantic.teacher)
    model = SemHiTok(config, external, parts)
    stored = _read_tensors(folder / WEIGHTS, model, config)
    model.load_state_dict(stored.tensors, strict=False)
    if set(parts) == set(ALL_PARTS) and stored.hash != model.hash:
        raise FormatError(
            f"{folder / WEIGHTS} does not have the hash that it was saved with: config or weights "
            "were changed; get a whole copy of both"
        )
    return model.requires_grad_(False).eval()


class _Stored:
    def __init__(self, tensors: dict[str, Tensor], digest: str | None) -> None:
        self.tensors, self.hash = tensors, digest


def _read_tensors(path: Path, model: SemHiTok, config: TokenizerConfig) -> _Stored:
    """The tensors that `model` needs, checked by name and shape against the whole config."""
    if not path.is_file():
        raise FormatError(f"{path.parent} has no {WEIGHTS}; get a whole copy of the model")
    wanted = saved_tensors(model)
    try:
        with safe_open(path, "pt") as file:
            names = set(file.keys())
            metadata = file.metadata() or {}
            _check_names(path, set(wanted), names, whole=set(model.parts) == set(ALL_PARTS))
            for name, tensor in wanted.items():
                shape = tuple(file.get_slice(name).get_shape())
                if shape != tuple(tensor.shape):
                    raise FormatError(
                        f"{path}: {name} has shape {shape}; the config says {tuple(tensor.shape)}"
                    )
            tensors = {name: file.get_tensor(name) for name in wanted}
    except (OSError, SafetensorError) as error:
        raise FormatError(f"{path} is damaged ({error}); get a whole copy of it") from error
    return _Stored(tensors, metadata.get("hash"))


def _check_names(path: Path, wanted: set[str], have: set[str], whole: bool) -> None:
    missing = sorted(wanted - have)
    if missing:
        raise FormatError(f"{path} lacks {len(missing)} tensors: {', '.join(missing[:3])} ...")
    unknown = sorted(have - wanted)
    if unknown and whole:
        raise FormatError(
            f"{path} has {len(unknown)} unknown tensors: {', '.join(unknown[:3])} ...; the config "
            "describes another model"
        )


def saved_tensors(model: SemHiTok) -> dict[str, Tensor]:
    """What a model file holds: all state, but for a trunk that is fetched by name."""
    semantic = model.config.semantic
    external = not semantic.bundled and semantic.trunk == "frozen"
    return {n: t for n, t in model.state_dict().items() if not (external and n.startswith(TRUNK))}


def model_hash(model: SemHiTok) -> str:
    """SHA-256 over config and tensors in name order, whatever dtype they are stored in."""
    # Parsed, as it will be on loading: 4 and 4.0 are one value and must hash as one.
    config = json.dumps(TokenizerConfig.from_dict(model.config.to_dict()).to_dict(), sort_keys=True)
    return tensors_hash(saved_tensors(model), config.encode())


def stored_form(tensor: Tensor) -> Tensor:
    """float16 where that loses nothing, else as it is."""
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.float32 and torch.equal(tensor.half().float(), tensor):
        return tensor.half()
    return tensor.clone()


def save(
    model: SemHiTok,
    folder: str | Path,
    *,
    card: str | None = None,
    metrics: dict[str, Any] | None = None,
) -> None:
    """Write a model folder; see `SemHiTok.save_pretrained`.

    Raises:
        FormatError: the model was loaded in parts.
        StorageError: the folder cannot be written.
    """
    if set(model.parts) != set(ALL_PARTS):
        raise FormatError(
            f"{model.config.name} was loaded for {list(model.parts)}; load all of it to save it"
        )
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    tensors = {name: stored_form(t) for name, t in saved_tensors(model).items()}
    digest = model.hash
    metadata = {"format": "pt", "hash": digest, "semantic_hash": model.semantic_hash}
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    texts = {
        CONFIG: config,
        METRICS: json.dumps(metrics or {}, indent=2) + "\n",
        CARD: card or default_card(model, digest),
    }
    write_file(folder / WEIGHTS, lambda temporary: save_file(tensors, temporary, metadata))
    for name, text in texts.items():
        write_file(folder / name, lambda temporary, text=text: temporary.write_text(text, "utf-8"))


def default_card(model: SemHiTok, digest: str) -> str:
    """A card for a model that nobody has written one for."""
    semantic, pixel = model.config.semantic, model.config.pixel
    return (
        f"---\nlibrary_name: semhitok\ntags: [image-tokenizer]\n---\n\n# {model.config.name}\n\n"
        f"A SemHiTok tokenizer: K = {semantic.num_codes} semantic codes, m = {pixel.num_codes} "
        f"pixel codes each, patch {model.patch_size}; teacher {semantic.teacher.source}.\n\n"
        f"Hash: `{digest}`\n"
    )


def push(model: SemHiTok, repo_id: str, *, private: bool = False) -> str:
    """Upload the model folder; its address. See `SemHiTok.push_to_hub`."""
    import tempfile

    from huggingface_hub import HfApi

    api = HfApi()
    address = api.create_repo(repo_id, private=private, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        save(model, folder)
        api.upload_folder(repo_id=repo_id, folder_path=folder)
    return str(address)


def bundled_teacher(name: str = "tiny") -> Teacher:
    """The semantic encoder that a bundled model carries, as a teacher for others.

    Raises:
        NotFoundError: no such model is bundled.
    """
    if name not in bundled_models():
        raise NotFoundError(
            f"the bundled model {name!r}, whose semantic encoder is the teacher when none is "
            "named, is not there; name a teacher: --set teacher.source=FOLDER_OR_HUB_ID"
        )
    folder = resolve(name)
    config = read_config(folder).semantic.teacher
    teacher = Teacher.from_config(config)
    with safe_open(folder / WEIGHTS, "pt") as file:
        state = {k: file.get_tensor(TRUNK + k) for k in teacher.state_dict()}
    teacher.load_state_dict(state)
    return teacher
