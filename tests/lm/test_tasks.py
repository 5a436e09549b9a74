from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest
import torch

from semhitok.errors import DataError
from semhitok.lm import phrases
from semhitok.lm.conversations import Conversation
from semhitok.lm.records import Record
from semhitok.lm.tasks import Describe, Draw, DrawClass, IsThere, Name, Task, converse

GRID = torch.zeros(2, 2).long()
CLASSES = [f"class {n}" for n in range(40)]
NAMES = [name for number, name in enumerate(CLASSES) for _ in range(60 - number)]


def records(count: int = 1000) -> Iterator[Record]:
    for number in range(count):
        name = CLASSES[number % len(CLASSES)]
        yield Record(f"{number}", GRID, {"class_name": name, "captions": ["A dog .", " two cats"]})


def texts(conversation: Conversation) -> tuple[str, str]:
    asked, answered = conversation.messages
    return asked["content"], answered["content"]  # type: ignore[index]


@pytest.fixture
def tasks() -> list[Task]:
    return [Describe(3), Draw(3), Name(3), DrawClass(3), IsThere(NAMES, 3)]


def test_words_follow_from_seed_and_key_alone(tasks: list[Task]) -> None:
    def words(seed: int, order: int) -> dict[str, tuple[str, str]]:
        made = [Describe(seed), Draw(seed), Name(seed), DrawClass(seed), IsThere(NAMES, seed)]
        shown = list(records(40))[::order]
        return {c.key: texts(c) for c in converse(shown, made)}  # type: ignore[union-attr]

    assert words(3, 1) == words(3, -1)
    assert words(3, 1) != words(4, 1)
    assert len(words(3, 1)) == 40 * (2 + 2 + 1 + 1 + 2), "a key came twice"


def test_kinds_and_answers(tasks: list[Task]) -> None:
    (record,) = records(1)
    describe, draw, name, draw_class, _ = (list(task(record)) for task in tasks)
    assert [texts(c)[1] for c in describe] == ["A dog .", "two cats"]
    assert all("<image>" in texts(c)[0] and c.kind == "understand" for c in describe)
    assert [texts(c)[1] for c in draw + draw_class] == ["<image>"] * 3
    assert "A dog ." in texts(draw[0])[0] and "two cats" in texts(draw[1])[0]
    assert all(c.kind == "generate" for c in draw + draw_class)
    assert "a class 0" in texts(draw_class[0])[0] and "a class 0." in texts(name[0])[1]
    assert all(c.pictures == (record.picture,) for c in describe + draw + name + draw_class)


def test_phrases_vary(tasks: list[Task]) -> None:
    found = [Counter(texts(c)[0] for r in records() for c in task(r)) for task in tasks[:1]]
    assert set(found[0]) == set(phrases.DESCRIBE)
    assert min(found[0].values()) > 2000 / len(phrases.DESCRIBE) * 0.8


def test_one_question_of_two_is_true_and_negatives_are_absent() -> None:
    task = IsThere(NAMES, 3)
    answers: Counter[str] = Counter()
    asked: dict[str, Counter[str]] = {"random": Counter(), "frequent": Counter()}
    for record in records():
        for conversation in task(record):
            question, answer = texts(conversation)
            answers[answer] += 1
            mentioned = next(n for n in reversed(CLASSES) if f"a {n}" in question)
            assert (mentioned == record.about["class_name"]) == (answer == phrases.YES)
            kind = conversation.key.rpartition("-")[2]
            if answer == phrases.NO:
                asked[kind][mentioned] += 1
    assert answers == {phrases.YES: 1000, phrases.NO: 1000}
    assert set(asked["frequent"]) == set(CLASSES[:4]), "the tenth that is most frequent"
    assert len(asked["random"]) == len(CLASSES)
    assert 400 < sum(asked["frequent"].values()) < 600


def test_pictures_without_words_make_nothing(tasks: list[Task]) -> None:
    bare = Record("x", GRID, {"class_name": None, "captions": [None, " "]})
    assert not list(converse([bare], tasks))
    single = Record("x", GRID, {"caption": "A cat."})
    assert [texts(c)[1] for c in Describe()(single)] == ["A cat."]


def test_one_class_has_no_other() -> None:
    with pytest.raises(DataError, match="1 classes; asking for one that is not there"):
        IsThere(["dog", "dog"])


def test_articles() -> None:
    names = ("dog", "apple", "umbrella", "unicycle", "Egyptian cat", "European fire salamander")
    articles = [phrases.with_article(name).split()[0] for name in names]
    assert articles == ["a", "an", "an", "a", "an", "a"]


def test_every_kind_of_question_holds_those_of_training() -> None:
    task = IsThere(NAMES, 3)
    frequent = set()
    for record in records(200):
        ((present, random, often),) = task.every(record)
        assert {c.key for c in task(record)} < {present.key, random.key, often.key}
        assert [texts(c)[1] for c in (present, random, often)] == ["Yes.", "No.", "No."]
        frequent.add(texts(often)[0].split("class ")[1].split("?")[0].split(" ")[0])
    assert frequent <= set("0123"), "a tenth of 40 classes"
