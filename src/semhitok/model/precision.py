"""In which precision networks compute, whatever the caller's autocast says."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def products_in(dtype: torch.dtype, device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Matrix products and convolutions in `dtype`; weights stay in their own.

    Nothing is switched where nothing has to be: devices without autocast have none to leave.
    """
    if dtype != torch.float32:
        return torch.autocast(device.type, dtype)
    if device.type != "meta" and torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return contextlib.nullcontext()
