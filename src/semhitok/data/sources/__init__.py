"""Data sets as pictures that can be read in any order: folders, parquet, tar, JSONL, the Hub."""

from semhitok.data.sources.base import ConcatSource, ImageSource, SubsetSource
from semhitok.data.sources.folder import FolderSource
from semhitok.data.sources.hub import hub_source
from semhitok.data.sources.jsonl import JsonlSource
from semhitok.data.sources.opening import open_source
from semhitok.data.sources.parquet import ParquetSource
from semhitok.data.sources.tar import TarSource

__all__ = [
    "ConcatSource",
    "FolderSource",
    "ImageSource",
    "JsonlSource",
    "ParquetSource",
    "SubsetSource",
    "TarSource",
    "hub_source",
    "open_source",
]
