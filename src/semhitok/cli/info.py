"""`semhitok info`: what a model is, and what it costs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from semhitok.cli.console import JsonOption, make_pairs, print_json, print_table

if TYPE_CHECKING:
    from torch import nn

    from semhitok.model import SemHiTok, TokenizerConfig


def info(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="Bundled name, model folder, Hub id owner/name, or a recipe's name.",
            show_default=False,
        ),
    ],
    json_: JsonOption = False,
) -> None:
    """What a model is and costs.

    Sizes, parameters, FLOPs, memory, bits a picture, hash and metrics. Of a recipe (semhitok-256,
    say) what its model will be, before it is trained.
    """
    record = describe(model)
    if json_:
        print_json(record)
    else:
        print_table(make_pairs(_lines(record)))


def describe(name: str) -> dict[str, Any]:
    """All that `info` tells, as plain data."""
    from semhitok import hub
    from semhitok.cli.models import file_hash
    from semhitok.errors import NotFoundError, near_matches
    from semhitok.yaml_recipes import bundled_recipes

    known = name in hub.bundled_models() or Path(name).is_dir()
    if not known and name in bundled_recipes():
        from semhitok.train.run import planned_config

        return {"name": name, "trained": False, **_measure(planned_config(name))}
    if not known and name.count("/") != 1:
        near = near_matches(name, {*hub.bundled_models(), *bundled_recipes()})
        raise NotFoundError(
            f"there is no model or recipe {name!r}{near}; a folder, or a Hub id 'owner/name', will "
            "do as well"
        )
    folder = hub.resolve(name)
    config = hub.read_config(folder)
    return {
        "name": config.name,
        "trained": True,
        **_measure(config),
        "stored_bytes": (folder / hub.WEIGHTS).stat().st_size,
        "hash": file_hash(folder),
        "metrics": hub.read_metrics(folder),
    }


def _measure(config: TokenizerConfig) -> dict[str, Any]:
    """What follows from the configuration; for it a network of shapes alone is built."""
    import torch

    from semhitok.model import SemHiTok

    with torch.device("meta"):
        model = SemHiTok(config).eval()
    side = config.image_size // config.patch_size
    bits = math.log2(config.vocab_size)
    parts = _parts(model)
    return {
        "teacher": config.semantic.teacher.source,
        "semantic_codes": config.semantic.num_codes,
        "pixel_codes": config.pixel.num_codes,
        "vocab_size": config.vocab_size,
        "patch_size": config.patch_size,
        "image_size": config.image_size,
        "grid": [side, side],
        "semantic_dim": config.semantic.code_dim,
        "pixel_dim": config.pixel.code_dim,
        "feature_dim": config.semantic.teacher.dim,
        "parameters": {**parts, "total": sum(parts.values())},
        "memory_bytes": 4 * sum(parts.values()),
        "flops": _flops(model),
        "bits_per_picture": bits * side**2,
        "bytes_per_picture": math.ceil(bits * side**2 / 8),
    }


def _parts(model: SemHiTok) -> dict[str, int]:
    """Numbers in each part; codebooks count, whether or not they learn by gradient."""
    semantic, pixel = model.semantic, model.pixel
    modules: dict[str, nn.Module | None] = {
        "semantic trunk": semantic.trunk,
        "semantic projection": semantic.projection,
        "semantic codebook": semantic.codebook,
        "semantic decoder": semantic.decoder,
        "pixel encoder": pixel.encoder,
        "pixel sub-codebooks": pixel.codebook,
        "pixel decoder": pixel.decoder,
        "enhance decoder": pixel.enhance,
    }
    sizes = {
        name: sum(tensor.numel() for tensor in module.state_dict().values())
        for name, module in modules.items()
        if module is not None
    }
    return {name: size for name, size in sizes.items() if size}


def _flops(model: SemHiTok) -> dict[str, int]:
    """Of one picture at the model's own size; two for each multiply-add.

    The searches are reckoned, since they look at values, which a network of shapes lacks.
    """

    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config, semantic, pixel = model.config, model.semantic, model.pixel
    side = config.image_size // config.patch_size
    dims = config.semantic.code_dim, config.pixel.code_dim
    images = torch.zeros(1, 3, config.image_size, config.image_size, device="meta")
    vectors = torch.zeros(1, side, side, sum(dims), device="meta")
    assert pixel.encoder is not None and pixel.decoder is not None
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        semantic.latents(images, (side, side))
        pixel.encoder(images)
    codes = config.semantic.num_codes * dims[0] + config.pixel.num_codes * dims[1]
    flops = {"encode": encoding.get_total_flops() + 2 * side**2 * codes}
    for name, decoder in {"decode": pixel.decoder, "decode enhanced": pixel.enhance}.items():
        if decoder is not None:
            with torch.no_grad(), FlopCounterMode(display=False) as decoding:
                decoder(vectors)
            flops[name] = decoding.get_total_flops()
    return flops


# ----------------------------------------------------------------------------------------- text


def _lines(record: dict[str, Any]) -> dict[str, str]:
    height, width = record["grid"]
    size = record["image_size"]
    lines = {
        "name": record["name"] + ("" if record["trained"] else " (a recipe, not trained here)"),
        "teacher": record["teacher"],
        "codes": f"K = {record['semantic_codes']:,} semantic, m = {record['pixel_codes']:,} pixel "
        f"codes each; vocabulary {record['vocab_size']:,}",
        "picture": f"{size} x {size} px, patch {record['patch_size']}, grid {height} x {width}",
        "dimensions": f"semantic {record['semantic_dim']}, pixel {record['pixel_dim']}, teacher's "
        f"features {record['feature_dim']}",
        "a picture": f"{record['bits_per_picture']:,.0f} bits, "
        f"{record['bytes_per_picture']:,} bytes",
    }
    for part, count in record["parameters"].items():
        lines[f"parameters, {part}"] = f"{count:,}"
    lines["memory, float32"] = _bytes(record["memory_bytes"])
    for work, count in record["flops"].items():
        lines[f"FLOPs a picture, {work}"] = f"{count / 1e9:,.3g} G"
    if record["trained"]:
        lines["stored"] = _bytes(record["stored_bytes"])
        lines["hash"] = record["hash"]
        lines |= dict(_flat(record["metrics"]))
    return lines


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Figures by their path, summaries by their mean; how they were measured is left to JSON."""
    pairs: list[tuple[str, str]] = []
    for name, value in tree.items():
        if name in ("protocol", "pictures", "failed"):
            continue
        value = value.get("mean", value) if isinstance(value, dict) else value
        if isinstance(value, dict):
            inner = prefix if name == "figures" else f"{prefix}{name}, "
            pairs += _flat(value, inner)
        else:
            text = f"{value:.5g}" if isinstance(value, float) else str(value)
            pairs.append((f"{prefix}{name}", text))
    return pairs
