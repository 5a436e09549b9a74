"""An assistant that says what it is told to, and labelled token shards that it can read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from answers import CLASSES, EACH

if TYPE_CHECKING:
    from semhitok.lm.evaluation.questions import Exam
    from semhitok.lm.processor import UnifiedProcessor

Says = Callable[[str, str], str]
"""From the question and the class of the picture to the answer."""


@pytest.fixture
def labelled(make_processor: Callable[..., UnifiedProcessor], tmp_path: Path) -> Path:
    from semhitok.data.tokens import TokenMetadata, TokenRecord, write_tokens

    metadata = TokenMetadata(
        model="toy", hash=make_processor().tokenizer_hash, num_semantic=16, num_pixel=4,
        patch_size=8, policy="", dtype="float32", version="1",
    )  # fmt: skip
    rows = [
        TokenRecord(f"{name}-{n}", torch.full((1, 2), label), torch.zeros(1, 2).long(), about)
        for label, name in enumerate(CLASSES)
        for n in range(EACH[label])
        for about in [{"class_name": name}]
    ]
    path = tmp_path / "tokens.parquet"
    write_tokens(path, rows, metadata)
    return path


@pytest.fixture
def make_exam(
    make_processor: Callable[..., UnifiedProcessor], labelled: Path
) -> Callable[..., Exam]:
    """An exam of a stub; `exam.assistant.asked` gets its batches."""
    from semhitok.lm.assistant import Assistant
    from semhitok.lm.evaluation.questions import Exam
    from semhitok.lm.records import CLASS, Records

    class Stub(Assistant):
        def __init__(self, says: Says) -> None:
            self.processor, self.says = make_processor(), says
            self.asked: list[int] = []

        def answer(self, conversations: Any, **options: Any) -> list[str]:
            self.asked.append(len(conversations))
            return [
                self.says(messages[-1]["content"], CLASSES[int(picture[0, 0]) // 4 % len(CLASSES)])
                for messages, (picture,) in conversations
            ]

    def make(says: Says, data: Path = labelled, **options: Any) -> Exam:
        stub = Stub(says)
        return Exam(stub, Records(data, [CLASS], stub.processor.tokenizer_hash), **options)

    return make
