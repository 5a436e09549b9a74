"""Prompts as public benchmarks give them, and where these look for the pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from semhitok.errors import FormatError, NotFoundError
from semhitok.images import reason
from semhitok.lm.picture_sets import Wanted

Layout = Literal["mjhq", "geneval"]
GENEVAL_SAMPLES = 4
"""As its authors draw."""


@dataclass(frozen=True)
class PromptSet:
    """What is to be drawn."""

    wanted: list[Wanted]
    sha256: str
    """Of the file, in hex."""
    beside: dict[str, str] = field(default_factory=dict)
    """Text files that the benchmark wants beside the pictures."""


def read_mjhq(path: Path) -> PromptSet:
    """MJHQ-30K's `meta_data.json`, `{ID: {"category": ..., "prompt": ...}}`; pictures become
    `CATEGORY/ID.png`.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is something else.

    Reference: Li et al., Playground v2.5, arXiv:2402.17245.
    """
    text = _read(path)
    try:
        entries = json.loads(text)
        rows = [(str(key), entry["category"], entry["prompt"]) for key, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _odd(path, '{ID: {"category": TEXT, "prompt": TEXT}}', reason(error)) from error
    wanted = []
    for key, category, prompt in rows:
        if not (_is_name(key) and _is_name(category) and _is_prompt(prompt)):
            raise _odd(
                path, "an id and a category that can name files, and a prompt", f"entry {key!r:.60}"
            )
        wanted.append(Wanted(key, prompt, f"{category}/{key}.png"))
    return _whole(path, text, wanted, {})


def read_geneval(path: Path, samples: int = GENEVAL_SAMPLES) -> PromptSet:
    """GenEval's `evaluation_metadata.jsonl`, a line a prompt; pictures become
    `00000/samples/00000.png` and so on beside `00000/metadata.jsonl`, that line.

    Args:
        samples: pictures of each prompt.

    Raises:
        NotFoundError: there is no such file.
        FormatError: it is something else.

    Reference: Ghosh et al., GenEval, arXiv:2310.11513.
    """
    text = _read(path)
    wanted, beside = [], {}
    for number, (line, prompt) in enumerate(_geneval_lines(path, text)):
        beside[f"{number:05d}/metadata.jsonl"] = line
        for sample in range(samples):
            name = f"{number:05d}/samples/{sample:05d}.png"
            wanted.append(Wanted(f"{number}/{sample}", prompt, name))
    return _whole(path, text, wanted, beside)


def _geneval_lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(filter(str.strip, text.split("\n")), 1):
        try:
            prompt = json.loads(line)["prompt"]
        except (ValueError, KeyError, TypeError) as error:
            raise _odd(path, '{"prompt": TEXT, ...} a line', f"line {number}") from error
        if not _is_prompt(prompt):
            raise _odd(path, '{"prompt": TEXT, ...} a line', f"line {number}")
        yield line, prompt


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no {path}; give the benchmark's file of prompts") from error
    except (OSError, ValueError) as error:
        raise _odd(path, "text in UTF-8", reason(error)) from error


def _whole(path: Path, text: str, wanted: list[Wanted], beside: dict[str, str]) -> PromptSet:
    if not wanted:
        raise _odd(path, "at least one", "nothing in it")
    return PromptSet(wanted, hashlib.sha256(text.encode()).hexdigest(), beside)


def _odd(path: Path, needed: str, found: str) -> FormatError:
    return FormatError(
        f"{path} has not the layout ({found}); needed: {needed}; see --layout for the others"
    )


def _is_name(text: Any) -> bool:
    """Whether it names a file in a folder, and none elsewhere."""
    return (
        isinstance(text, str)
        and not text.startswith(".")
        and text.isprintable()
        and not set(text) & set("/\\:")
        and bool(text.strip())
    )


def _is_prompt(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
