"""Loss on sequences that were not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from semhitok.errors import RangeError
from semhitok.lm.evaluation.section import Advance, Interval, Section, silent
from semhitok.lm.examples import IGNORED
from semhitok.lm.model import UnifiedModel
from semhitok.lm.packing import fill
from semhitok.lm.sequences import Sequences, pack


@torch.no_grad()
def measure_loss(
    model: UnifiedModel,
    sequences: Sequences,
    interval: Interval,
    *,
    length: int | None = None,
    batch_size: int = 8,
    advance: Advance = silent,
) -> Section:
    """Nats a learned token: of text ids and markers, and of image ids, not weighted.

    Figures, of all sequences and of each kind (understand, generate, text): `text` and `image`,
    and of how many tokens. Intervals are over sequences.

    Args:
        length: pack the sequences into items of so many tokens; None for one a row, which gives
            the same figures.
        batch_size: items at once.

    Raises:
        RangeError: a sequence longer than `length`.
    """
    sums = torch.zeros(2, 2, len(sequences), dtype=torch.float64)
    done = 0
    for batch in _batches(sequences, length, batch_size):
        _add(model, sequences, batch, sums)
        done += sum(map(len, batch))
        advance(done)
    nats, counts = sums
    kinds = {"all": np.full(len(sequences), True)}
    if len(set(sequences.kinds.tolist())) > 1:
        kinds |= {str(kind): sequences.kinds == kind for kind in np.unique(sequences.kinds)}
    figures = {
        kind: _figures(nats[:, torch.from_numpy(own)], counts[:, torch.from_numpy(own)], interval)
        for kind, own in kinds.items()
    }
    protocol = {
        "data": {
            "name": sequences.name,
            "sequences": len(sequences),
            "fingerprint": sequences.fingerprint,
        },
        "unit": "nats a learned token; no text is dropped",
        "packing": "one sequence a row" if length is None else f"items of {length} tokens",
    }
    return Section(figures, protocol)


def _figures(
    nats: Float[Tensor, "2 n"], counts: Float[Tensor, "2 n"], interval: Interval
) -> dict[str, Any]:
    text, image = (interval(a, b) for a, b in zip(nats, counts, strict=True))
    tokens, ids = (int(count) for count in counts.sum(dim=1).tolist())
    number = counts.shape[1]
    return {
        "text": text,
        "image": image,
        "sequences": number,
        "text_tokens": tokens,
        "image_ids": ids,
    }


def _batches(sequences: Sequences, length: int | None, size: int) -> list[list[list[int]]]:
    """Batches of items of sequences' numbers."""
    order = np.argsort(sequences.lengths, kind="stable")
    if length is None:
        items = [[int(number)] for number in order]  # neighbours are of one length: little padding
    else:
        longest = int(sequences.lengths.max(initial=0))
        if longest > length:
            raise RangeError(
                f"{sequences.name} has a sequence of {longest} tokens, an item has {length}; make "
                "items longer"
            )
        numbers = np.arange(len(sequences))
        places = fill(sequences.lengths, length)
        items = [
            numbers[places == item].tolist() for item in range(int(places.max(initial=-1)) + 1)
        ]
    return [items[start : start + size] for start in range(0, len(items), size)]


def _add(
    model: UnifiedModel, sequences: Sequences, batch: Sequence[Sequence[int]], sums: Tensor
) -> None:
    """Add nats and counts of each sequence in a batch."""
    length = max(int(sequences.lengths[item].sum()) for item in batch)
    packed = [pack([sequences[number] for number in item], length) for item in batch]
    rows = {name: torch.stack([item[name] for item in packed]) for name in packed[0]}  # type: ignore[literal-required]
    owners = torch.zeros(len(batch), length, dtype=torch.int64)
    for row, item in enumerate(batch):
        each = torch.from_numpy(np.repeat(item, sequences.lengths[item]))
        owners[row, : len(each)] = each
    hidden = model(
        rows["input_ids"].to(model.device),
        position_ids=rows["position_ids"].to(model.device),
        logits_to_keep=0,
        read_out=nn.Identity(),
        use_cache=False,  # with one, `transformers` would not look for several examples in a row
    ).logits
    learned = rows["labels"][:, 1:] != IGNORED
    targets = rows["labels"][:, 1:][learned]
    losses = model.losses(hidden[:, :-1][learned.to(model.device)], targets.to(model.device))
    kinds, whose = model.vocabulary.is_image(targets).long(), owners[:, 1:][learned]
    sums[0].index_put_((kinds, whose), losses.double().cpu(), accumulate=True)
    sums[1].index_put_((kinds, whose), torch.ones(len(targets)).double(), accumulate=True)
