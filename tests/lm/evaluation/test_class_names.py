from __future__ import annotations

import pytest

from semhitok.lm.evaluation.class_names import ClassNames

NAMES = ["cliff", "cliff dwelling", "potter's wheel", "go-kart", "tench, Tinca tinca", "fly"]


@pytest.mark.parametrize(
    "answer, classes",
    [
        ("This is a cliff.", {"cliff"}),
        ("CLIFF", {"cliff"}),
        ("I see a cliff dwelling!", {"cliff dwelling"}),
        ("a cliff dwelling on a cliff", {"cliff", "cliff dwelling"}),
        ("It shows a Potter\u2019s wheel", {"potter's wheel"}),
        ("a go kart", {"go-kart"}),
        ("a go_kart", {"go-kart"}),
        ("Tinca  tinca", {"tench, Tinca tinca"}),
        ("tinca", set()),
        ("cliffs and a firefly, flying", set()),
        ("", set()),
    ],
)
def test_whole_names_and_the_longest(answer: str, classes: set[str]) -> None:
    assert ClassNames(NAMES).named_in(answer) == classes


def test_a_synonym_of_two_classes_names_both() -> None:
    names = ClassNames(["crane, bird", "crane, machine"])
    assert names.named_in("a crane") == set(names.names)
    assert names.named_in("a machine") == {"crane, machine"}
