"""Tokens as a WebDataset shard, for training code that reads such."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence

import numpy as np

from semhitok.data.tokens import TokenMetadata, TokenRecord


def webdataset_bytes(records: Sequence[TokenRecord], metadata: TokenMetadata) -> bytes:
    """A tar file: of each picture `NUMBER.ids.npy` (h, w) and `NUMBER.json` with key and extra.

    Samples are numbered, since WebDataset ends a sample's name at its first dot, and keys have
    dots. The same records give the same bytes.
    """
    small = metadata.num_semantic * metadata.num_pixel <= 2**31
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number, record in enumerate(records):
            ids = record.semantic * metadata.num_pixel + record.pixel
            array = io.BytesIO()
            np.save(array, ids.cpu().numpy().astype(np.int32 if small else np.int64))
            told = {"key": record.key, **record.extra}
            text = json.dumps(told, sort_keys=True, default=str).encode()
            for kind, data in (("ids.npy", array.getvalue()), ("json", text)):
                member = tarfile.TarInfo(f"{number:06d}.{kind}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()
