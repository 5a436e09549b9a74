"""What a user can get wrong, one kind each.

SemHiTokError
├── ImageError         a picture that cannot be read, or is refused before it is decoded
├── ShapeError         a tensor of the wrong shape
├── RangeError         values or dtype outside what is allowed
├── IdError            token ids or codes outside the vocabulary
├── FormatError        a model folder, token file or checkpoint that is not what it should be
├── NotFoundError      a model, recipe, file or key of a name that does not exist
├── RecipeError        a recipe or config that says something impossible
├── DataError          a data set that gives no usable pictures
├── StorageError       a disk that is full or a folder that cannot be written
├── TrainingError      a training that cannot go on (a loss that is not finite, say)
├── ClusterError       a cluster that cannot be had, has no room, or loses every worker
└── MissingExtraError  an optional dependency that is not installed

A message is one line: what was given, what is allowed, what to do next. The command line prints it
as it is and exits with 2; anything that is not a SemHiTokError is a defect of ours.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SemHiTokError(Exception):
    """Base of everything that this package raises on purpose."""


class ImageError(SemHiTokError):
    """A picture that cannot be read, or is refused before it is decoded."""


class ShapeError(SemHiTokError):
    """A tensor of the wrong shape."""


class RangeError(SemHiTokError):
    """Values or dtype outside what is allowed."""


class IdError(SemHiTokError):
    """Token ids or codes outside the vocabulary."""


class FormatError(SemHiTokError):
    """A model folder, token file or checkpoint that is not what it should be."""


class NotFoundError(SemHiTokError):
    """A model, recipe, file or key of a name that does not exist."""


class RecipeError(SemHiTokError):
    """A recipe or config that says something impossible."""


class DataError(SemHiTokError):
    """A data set that gives no usable pictures."""


class StorageError(SemHiTokError):
    """A disk that is full or a folder that cannot be written."""


class TrainingError(SemHiTokError):
    """A training that cannot go on."""


class ClusterError(SemHiTokError):
    """A cluster that cannot be had, has no room, or loses every worker."""


class MissingExtraError(SemHiTokError):
    """An optional dependency that is not installed."""


def near_matches(name: str, allowed: Iterable[str]) -> str:
    """`"; did you mean 'a' or 'b'?"`, or the whole list where nothing is near."""
    names = sorted(allowed)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if near:
        return "; did you mean " + " or ".join(repr(n) for n in near) + "?"
    return "; allowed: " + ", ".join(names)
