"""Tokens as tar files that WebDataset reads."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np
import pytest
import torch

from semhitok.data.tokens import TokenMetadata, TokenRecord
from semhitok.data.webdataset import webdataset_bytes


def metadata(num_semantic: int, num_pixel: int) -> TokenMetadata:
    return TokenMetadata(
        model="toy",
        hash="abc",
        num_semantic=num_semantic,
        num_pixel=num_pixel,
        patch_size=8,
        policy="native",
        dtype="float32",
        version="1",
    )


@pytest.mark.parametrize(("m", "kind"), [(4, np.int32), (65_536, np.int64)])
def test_samples_hold_ids_and_what_is_said_of_them(m: int, kind: type) -> None:
    codes = torch.arange(6).reshape(2, 3)
    records = [
        TokenRecord("a.b.jpg", codes, codes % 4, {"label": 3, "captions": ["x", "y"]}),
        TokenRecord("c", codes.flip(0), codes % 2, {}),
    ]
    data = webdataset_bytes(records, metadata(65_536 if m > 4 else 16, m))
    assert data == webdataset_bytes(records, metadata(65_536 if m > 4 else 16, m))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames() == [
            "000000.ids.npy",
            "000000.json",
            "000001.ids.npy",
            "000001.json",
        ]
        for number, record in enumerate(records):
            ids = np.load(io.BytesIO(tar.extractfile(f"00000{number}.ids.npy").read()))  # type: ignore[union-attr]
            assert ids.dtype == kind and ids.shape == (2, 3)
            assert (ids == (record.semantic * m + record.pixel).numpy()).all()
            told = json.load(tar.extractfile(f"00000{number}.json"))  # type: ignore[arg-type]
            assert told == {"key": record.key, **record.extra}
