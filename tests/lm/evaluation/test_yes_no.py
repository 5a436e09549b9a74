from __future__ import annotations

from collections.abc import Callable

import pytest
from answers import CLASSES, interval

from semhitok.lm.evaluation.questions import Exam
from semhitok.lm.evaluation.yes_no import SETTINGS, figures_of, measure_yes_no, said_in

Make = Callable[..., Exam]


def truly(asked: str, name: str) -> str:
    """Whether the picture's own class is asked for, and not one that contains its name."""
    named = [other for other in CLASSES if f"a {other}?" in asked or f"a {other} in" in asked]
    return "Yes." if named == [name] else "No, there is none."


def test_who_sees_is_always_right(make_exam: Make) -> None:
    figures = measure_yes_no(make_exam(truly, batch_size=3), interval).figures
    for setting in SETTINGS:
        means = {name: figure["mean"] for name, figure in figures[setting].items()}
        assert means == {
            "accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "share_yes": 0.5, "neither": 0
        }  # fmt: skip
    assert figures["pictures"] == 16 and figures["questions"] == 48


@pytest.mark.parametrize("word, recall", [("Yes, sure.", 1.0), ("no", 0.0)])
def test_who_always_says_the_same_is_right_half_of_the_time(
    make_exam: Make, word: str, recall: float
) -> None:
    figures = measure_yes_no(make_exam(lambda asked, name: word), interval).figures
    for setting in SETTINGS:
        found = figures[setting]
        assert found["accuracy"]["mean"] == 0.5 and found["recall"]["mean"] == recall
        assert found["share_yes"]["mean"] == recall
        assert found["precision"] == ({"mean": 0.5} if recall else None)
    assert figures["right"]["present"]["mean"] == recall
    assert figures["right"]["random"]["mean"] == 1 - recall


def test_other_words_are_wrong_and_counted(make_exam: Make) -> None:
    figures = measure_yes_no(make_exam(lambda asked, name: "Yesterday"), interval).figures
    assert figures["all"]["accuracy"]["mean"] == 0 and figures["all"]["neither"]["mean"] == 1
    assert [said_in(t) for t in ("YES!", " no.", "", "maybe yes")] == [
        "yes", "no", "neither", "neither"
    ]  # fmt: skip


def test_figures_by_hand() -> None:
    said = ["yes", "no", "yes", "yes", "yes", "no", "no", "no", "neither"]
    figures = figures_of(said, interval)  # type: ignore[arg-type]
    random, frequent, both = (figures[name] for name in ("random", "frequent", "all"))
    assert random["accuracy"]["mean"] == pytest.approx(4 / 6)
    assert random["precision"]["mean"] == pytest.approx(2 / 3)
    assert random["recall"]["mean"] == pytest.approx(2 / 3)
    assert frequent["accuracy"]["mean"] == pytest.approx(3 / 6)
    assert frequent["f1"]["mean"] == pytest.approx(2 * 2 / (3 + 3))
    assert both["accuracy"]["mean"] == pytest.approx((2 * 2 + 2 + 1) / 12)
    assert both["share_yes"]["mean"] == pytest.approx((2 * 2 + 1 + 1) / 12)
    assert both["neither"]["mean"] == pytest.approx(1 / 12)


def test_negatives_follow_from_seed_and_key_alone(make_exam: Make) -> None:
    def asked(**options: int) -> dict[tuple[str, str], str]:
        rows = measure_yes_no(make_exam(truly, **options), interval).rows
        return {(row["key"], row["kind"]): row["asked"] for row in rows}

    whole = asked(seed=3)
    assert asked(seed=3, max_pictures=5, batch_size=2).items() <= whole.items()
    assert asked(seed=4) != whole
