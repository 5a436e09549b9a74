"""Pictures of classes, for a classifier to name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from semhitok.lm import phrases
from semhitok.lm.picture_sets import Wanted


@dataclass(frozen=True)
class ClassDrawings:
    """So many pictures of some classes, each as often as any other, give or take one."""

    names: Sequence[str]
    count: int

    @property
    def labels(self) -> list[int]:
        """The class of each picture, in order; of fewer pictures than classes, evenly spaced."""
        return [number * len(self.names) // self.count for number in range(self.count)]

    def wanted(self, name: str, *, of_classes: bool = True) -> list[Wanted]:
        """A set of that name. Pictures of the same number have the same random numbers in each."""
        return [
            Wanted(
                f"class-drawing/{number}",
                self._prompt(label) if of_classes else None,
                f"{name}/{number:05d}.png",
            )
            for number, label in enumerate(self.labels)
        ]

    def _prompt(self, label: int) -> str:
        return phrases.DRAW_CLASS[0].format(a=phrases.with_article(self.names[label]))
