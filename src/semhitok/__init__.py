"""SemHiTok: one discrete token a patch that carries both meaning and appearance.

    from semhitok import SemHiTok

    tok = SemHiTok.from_pretrained("tiny")
    ids = tok.encode(tok.preprocess("photo.jpg"))
    picture = tok.decode(ids)

Reference: Chen et al., SemHiTok, arXiv:2503.06764.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semhitok.errors import SemHiTokError
    from semhitok.model.config import TokenizerConfig
    from semhitok.model.tokenizer import SemHiTok

__version__ = "0.1.0"

# Loaded when first asked for: `import semhitok` costs nothing, and needs no torch.
_HOME = {
    "SemHiTok": "semhitok.model.tokenizer",
    "SemHiTokError": "semhitok.errors",
    "TokenizerConfig": "semhitok.model.config",
}

__all__ = ["SemHiTok", "SemHiTokError", "TokenizerConfig", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'semhitok' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
