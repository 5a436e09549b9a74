"""Where a teacher comes from: the files of a folder or of a Hub model, and what they say of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from semhitok.errors import FormatError, NotFoundError, RangeError
from semhitok.model.trunk import Family, Triple, build_library_config, check_family, one_line

OUTPUT_STRIDES = (8, 16, 32)


def read_model_config(
    source: str | Path, revision: str | None
) -> tuple[dict[str, Any], str | None]:
    """`config.json`, and the commit that it is of (None for a folder).

    Raises:
        NotFoundError: there is no such folder or model.
    """
    path = find_file(source, "config.json", revision)
    if path is None:
        raise FormatError(f"{source} has no config.json; a teacher is a folder of transformers")
    raw = read_json(path)
    # The Hub's cache keeps a file under snapshots/<commit>/.
    return raw, None if Path(source).is_dir() else path.parent.name


def vision_architecture(raw: dict[str, Any], where: str) -> dict[str, Any]:
    """What of a model's `config.json` decides the vision tower's shape, every default spelled out.

    Labels, text tower and the library's own bookkeeping are left out.

    Raises:
        FormatError: the family is not supported.
    """
    if "vision_config" in raw:
        raw = {**raw["vision_config"], "model_type": f"{raw.get('model_type')}_vision_model"}
    check_family(raw.get("model_type"), where)
    from transformers import PretrainedConfig

    bookkeeping = set(PretrainedConfig().to_dict()) | {
        "stage_names",
        "out_features",
        "out_indices",
        "apply_layernorm",
        "reshape_hidden_states",
    }
    raw = {k: v for k, v in raw.items() if k == "model_type" or k not in bookkeeping}
    config = build_library_config(raw)
    known = set(type(config)().to_dict()) - bookkeeping
    own = {k: v for k, v in config.to_dict().items() if k in known}
    plain: dict[str, Any] = json.loads(json.dumps(own | {"model_type": raw["model_type"]}))
    return plain


def with_output_stride(architecture: dict[str, Any], output_stride: int) -> dict[str, Any]:
    """The same network, dilated to `output_stride` pixels per cell.

    Raises:
        RangeError: the family cannot, or not to this stride.
    """
    family = architecture["model_type"]
    if family != "mobilenet_v2":
        raise RangeError(
            f"output_stride is {output_stride}; only mobilenet_v2 can be dilated: leave it out; "
            f"a {family} has its patch size or, where it is convolutional, that of its layers"
        )
    if output_stride not in OUTPUT_STRIDES:
        raise RangeError(f"output_stride is {output_stride}; mobilenet_v2 takes 8, 16 or 32")
    return architecture | {"output_stride": output_stride}


def read_normalisation(
    source: str | Path, revision: str | None, family: Family
) -> tuple[Triple, Triple]:
    """Mean and deviation that the model was trained with; the family's where it does not say."""
    path = find_file(source, "preprocessor_config.json", revision)
    if path is not None:
        raw = read_json(path)
    else:
        path = find_file(source, "processor_config.json", revision)
        raw = read_json(path).get("image_processor", {}) if path is not None else {}
    if raw.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    try:
        return (
            triple(raw.get("image_mean", family.mean)),
            triple(raw.get("image_std", family.std)),
        )
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"{path}: image_mean and image_std must be three numbers: {error}"
        ) from error


def triple(values: Any) -> Triple:
    """Three floats of what JSON holds."""
    red, green, blue = values
    return float(red), float(green), float(blue)


def find_file(source: str | Path, name: str, revision: str | None) -> Path | None:
    """A file of a folder, or of a Hub model; None where that exists without the file.

    Raises:
        NotFoundError: there is no such folder or model.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    problem: Exception
    try:
        return Path(hf_hub_download(str(source), name, revision=revision))
    except LocalEntryNotFoundError as error:  # the Hub cannot be reached
        problem = error
    except EntryNotFoundError:
        return None
    except (OSError, ValueError) as error:  # no such model or revision, or not even an id
        problem = error
    raise NotFoundError(
        f"no teacher {str(source)!r}: not a folder, and not a model of the Hub that can be "
        f"reached ({one_line(problem)})"
    ) from problem


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file.

    Raises:
        FormatError: it is not one.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FormatError(f"{path} is not JSON: {error}; get a whole copy of it") from error
    if not isinstance(data, dict):
        raise FormatError(f"{path} holds a {type(data).__name__}; a mapping is needed")
    return data
