"""Which class an answer in free text names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

MATCHING = (
    "answer and names as words: NFKC, case folded, all but letters and digits a blank; from left "
    "to right the longest name that begins at a word, whole words only; names of a class are its "
    "synonyms between commas; right where all names that were found are of the picture's class and "
    "of no other"
)
"""For protocols."""


def words_of(text: str) -> list[str]:
    """Lower-case words of letters and digits."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("_", " ")
    return re.findall(r"\w+", folded)


class ClassNames:
    """The classes of a data set; a name is `tench`, or `tench, Tinca tinca` with synonyms."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = sorted(set(names))
        self._classes: dict[tuple[str, ...], set[str]] = {}
        for name in self.names:
            for synonym in name.split(","):
                if words := tuple(words_of(synonym)):
                    self._classes.setdefault(words, set()).add(name)
        self._longest = max(map(len, self._classes), default=0)

    def named_in(self, answer: str) -> set[str]:
        """The classes that the answer names; a synonym that several have names all of them."""
        words = words_of(answer)
        found: set[str] = set()
        place = 0
        while place < len(words):
            name = self._longest_at(words, place)
            found |= self._classes.get(name, set())
            place += max(1, len(name))
        return found

    def _longest_at(self, words: list[str], place: int) -> tuple[str, ...]:
        for length in range(self._longest, 0, -1):
            name = tuple(words[place : place + length])
            if name in self._classes:
                return name
        return ()
