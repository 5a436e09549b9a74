"""Recipes as files: YAML with overlays and overrides, read into sections that are checked.

What a recipe says is the business of `train.recipe` and `lm.recipe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from semhitok.errors import FormatError, NotFoundError, RecipeError, near_matches


class Section(BaseModel):
    """A part of a recipe; keys that it does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Optimizer(Section):
    """AdamW, warm-up, cosine to `final` of the peak rate."""

    lr: float = Field(gt=0)
    final: float = Field(default=0.02, ge=0)
    warmup: int = Field(default=100, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    clip: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient."""


S = TypeVar("S", bound=Section)


def bundled_recipes(family: str = "") -> list[str]:
    """Names of the recipes that come with the package; a family has a folder of its own."""
    folder = resources.files("semhitok") / "recipes" / family
    return sorted(
        p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name.endswith(".yaml")
    )


def load(kind: type[S], name: str, family: str = "", overrides: Sequence[str] = ()) -> S:
    """Read a recipe by name or path, its `extends` chain, and overrides.

    Args:
        name: a name of `bundled_recipes(family)`, or the path of a YAML file.
        overrides: "path.to.key=value" each, the value written as YAML.

    Raises:
        NotFoundError: there is no such recipe.
        FormatError: it is not YAML.
        RecipeError: a key is unknown, or a value is not allowed.
    """
    data = read_recipe(name, family)
    for override in overrides:
        _override(data, override)
    return parse(kind, data)


def parse(kind: type[S], data: dict[str, Any]) -> S:
    """Check a recipe's plain data.

    Raises:
        RecipeError: a key is unknown, or a value is not allowed.
    """
    try:
        return kind.model_validate(data)
    except pydantic.ValidationError as error:
        raise RecipeError(_one_line(error, kind, data)) from error


def read_recipe(name: str, family: str = "") -> dict[str, Any]:
    """A recipe's plain data with its `extends` chain, not checked yet; see `load`."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise NotFoundError(
                f"there is no recipe file {name}; bundled: {bundled_recipes(family)}"
            )
        text = path.read_text()
    else:
        known = bundled_recipes(family)
        if name not in known:
            raise NotFoundError(f"there is no recipe {name!r}{near_matches(name, known)}")
        text = (resources.files("semhitok") / "recipes" / family / f"{name}.yaml").read_text()
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        line = " ".join(str(error).split())
        raise FormatError(f"recipe {name} is not valid YAML: {line}") from error
    if not isinstance(data, dict):
        raise FormatError(f"recipe {name} holds {type(data).__name__}; a mapping is needed")
    base = data.pop("extends", None)
    return data if base is None else merge(read_recipe(base, family), data)


def merge(base: dict[str, Any], overlay: dict[str, Any]) -> dict[str, Any]:
    """The base with the overlay's values in their places; sections are merged, lists replaced."""
    merged = dict(base)
    for key, value in overlay.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    if not equals:
        raise RecipeError(f"--set {override!r} has no '='; write --set path.to.key=value")
    *parents, last = path.strip().split(".")
    node: Any = data
    for parent in parents:
        node = (
            node.setdefault(parent, {}) if isinstance(node, dict) else _member(node, parent, path)
        )
        if node is None or not isinstance(node, (dict, list)):
            raise RecipeError(f"--set {path}: {parent!r} is not a section of the recipe")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f"--set {path}: {text!r} is not a YAML value") from error
    if isinstance(node, list):
        _member(node, last, path)
        node[int(last)] = value
    else:
        node[last] = value


def _member(node: list[Any], index: str, path: str) -> Any:
    if not index.isdigit() or int(index) >= len(node):
        raise RecipeError(f"--set {path}: {index!r} is no place in a list of {len(node)}")
    return node[int(index)]


def _one_line(error: pydantic.ValidationError, kind: type[Section], data: dict[str, Any]) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        key = str(first["loc"][-1])
        near = near_matches(key, _allowed(kind, first["loc"][:-1]))
        return f"recipe has an unknown key {where!r}{near}"
    given = "" if first["type"] == "missing" else f" is {first['input']!r}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"recipe: {where}{given}: {first['msg']}{more}"


def _allowed(kind: type[Section], path: tuple[int | str, ...]) -> list[str]:
    """Keys of the section at a path, found through the annotations."""
    section: Any = kind
    for part in path:
        if isinstance(part, int):
            continue
        annotation = section.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        section = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return list(section.model_fields)
