"""What a data set says of its pictures, as columns of one kind in every file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from semhitok.data.sources import ImageSource
from semhitok.errors import DataError, SemHiTokError
from semhitok.images import reason

TAKEN = ("key", "semantic", "pixel", "height", "width")
"""Columns of every token file; what a data set calls the same is stored as `source_...`."""

JSON = "json"
"""Kind of a column whose values are of several kinds, or nested: JSON text."""

SAMPLE = 256
_LIST = re.compile(r"list<\w+: (.+)>")


def own_name(name: str) -> str:
    """What a data set's column is called in a token file."""
    return f"source_{name}" if name in TAKEN else name


@dataclass(frozen=True)
class Columns:
    """Names and kinds, which a whole data set shares; a kind is Arrow's name of it, or JSON."""

    kinds: Mapping[str, str]

    @classmethod
    def of(cls, source: ImageSource) -> Columns:
        """As a sample of the source's pictures, evenly spaced, has them."""
        count = min(SAMPLE, len(source))
        found: dict[str, list[Any]] = {}
        for number in range(count):
            try:
                meta = source.meta(number * len(source) // count)
            except SemHiTokError:
                continue  # named when that picture's turn comes
            for name, value in meta.items():
                found.setdefault(own_name(name), []).append(value)
        return cls({name: _kind(values) for name, values in found.items()})

    def fit(self, meta: Mapping[str, Any]) -> dict[str, Any]:
        """One picture's values under their names here.

        Raises:
            DataError: a column that the sample lacked, or a value of another kind.
        """
        values = {own_name(name): value for name, value in meta.items() if value is not None}
        for name, value in values.items():
            if name not in self.kinds:
                raise DataError(
                    f"it has a column {name!r}, which a sample of {SAMPLE} pictures lacks; known: "
                    f"{', '.join(self.kinds) or 'none'}"
                )
            try:
                self._array(name, [value])
            except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
                raise DataError(
                    f"its {name!r} is {value!r}; {self.kinds[name]} is needed ({reason(error)})"
                ) from error
        return values

    def arrays(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, pa.Array]:
        """A column a name; null where a row has none."""
        return {name: self._array(name, [row.get(name) for row in rows]) for name in self.kinds}

    def _array(self, name: str, values: Iterable[Any]) -> pa.Array:
        kind = self.kinds[name]
        if kind == JSON:
            texts = [None if v is None else json.dumps(v, sort_keys=True) for v in values]
            return pa.array(texts, pa.string())
        return pa.array(list(values), _type(kind))


def _kind(values: Sequence[Any]) -> str:
    if all(value is None for value in values):
        return JSON  # nothing is known of it but its name
    try:
        name = str(pa.array(values).type)
        _type(name)
    except (pa.ArrowException, OverflowError, ValueError, TypeError):
        return JSON
    return name


def _type(name: str) -> pa.DataType:
    """The type that Arrow prints so.

    Raises:
        ValueError: it has no alias, as nested types have none.
    """
    inner = _LIST.fullmatch(name)
    return pa.list_(_type(inner[1])) if inner else pa.type_for_alias(name)
