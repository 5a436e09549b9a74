"""Who may import whom (the architecture's directions), and what the front door loads."""

from __future__ import annotations

import ast
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import semhitok

SOURCE = Path(semhitok.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))

# Names without a folder: parts that all may use, each of them only those before it.
BASE = ["errors", "extras", "files", "jpeg", "decoding", "images", "storage", "yaml_recipes"]
CORE = {*BASE, "hub", "model", "data"}
ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "extras": {"errors"},
    "files": {"errors"},
    "jpeg": {"errors"},
    "decoding": {"errors", "extras", "files", "jpeg"},
    "images": {"errors", "extras", "files", "decoding"},
    "storage": {"errors", "extras", "files", "decoding", "images"},
    "yaml_recipes": {"errors"},
    "model": set(BASE),
    "data": set(BASE),
    "hub": {*BASE, "model"},
    "train": CORE,
    "evaluate": CORE,
    "tokenize": CORE,
    "lm": CORE,
    "export": CORE,
    "study": {*CORE, "train", "evaluate"},
    "explore": {*CORE, "evaluate"},
    "__main__": {"cli"},  # `python -m semhitok`
}
FRONT_DOOR = {"semhitok"}  # for __version__; it imports nothing itself

# A tokenizer's own methods lead to its folder and to reading pictures, when they are called.
EXCEPTION = {
    "from_pretrained": "semhitok.hub",
    "save_pretrained": "semhitok.hub",
    "push_to_hub": "semhitok.hub",
    "hash": "semhitok.hub",
    "preprocess": "semhitok.images",
}
OF_MODEL_AT_TOP = {"torch", "numpy", "jaxtyping", "semhitok", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Import:
    file: Path
    line: int
    module: str
    function: str | None
    """The outermost function that does it; None at the top of the file."""

    @property
    def owner(self) -> str:
        """The part of the package that the file belongs to."""
        return self.file.relative_to(SOURCE).parts[0].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.file.relative_to(SOURCE)}:{self.line} imports {self.module}"


def imports_of(file: Path) -> Iterator[Import]:
    def walk(node: ast.AST, function: str | None) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{file}:{child.lineno}: a relative import"
                assert child.module is not None
                # `from semhitok import hub` is an import of semhitok.hub.
                whole = child.module == "semhitok"
                names = [f"semhitok.{a.name}" if whole else child.module for a in child.names]
            for name in names:
                yield Import(file, child.lineno, name, function)
            inner = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            name = getattr(child, "name", "lambda") if inner else None
            yield from walk(child, function or name)

    yield from walk(ast.parse(file.read_text(encoding="utf-8")), None)


ALL = [one for file in MODULES for one in imports_of(file)]
INTERNAL = [one for one in ALL if one.module.split(".")[0] == "semhitok"]


def target(one: Import) -> str:
    """The part that is imported: semhitok.model.layers -> model."""
    return (one.module.split(".") + [""])[1]


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30 and len(INTERNAL) > 100
    owners = {one.owner for one in ALL}
    assert {"model", "hub", "train", "evaluate", "data"} <= owners
    assert owners <= {*ALLOWED, "cli", "__init__"}, "a part whose directions nobody wrote down"


def test_parts_import_only_what_the_architecture_allows() -> None:
    wrong = [
        str(one)
        for one in INTERNAL
        if one.owner not in ("cli", "__init__")
        and one.module not in FRONT_DOOR
        and target(one) not in {one.owner, *ALLOWED[one.owner]}
        and not (
            one.file.name == "tokenizer.py" and EXCEPTION.get(one.function or "") == one.module
        )
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_imported_is_there() -> None:
    """An import inside a function that no test calls would else be found by a user."""
    public = {f"semhitok.{name}" for name in dir(semhitok)}
    modules = [one for one in INTERNAL if one.module not in public]
    wrong = [str(one) for one in modules if importlib.util.find_spec(one.module) is None]
    assert not wrong, "\n".join(wrong)


def test_the_exception_is_still_needed() -> None:
    used = {(i.function, i.module) for i in INTERNAL if i.file == SOURCE / "model/tokenizer.py"}
    assert set(EXCEPTION.items()) <= used


def test_nobody_imports_the_command_line() -> None:
    wrong = [str(i) for i in INTERNAL if target(i) == "cli" and i.owner not in ("cli", "__main__")]
    assert not wrong, "\n".join(wrong)


def test_model_needs_only_torch_numpy_and_jaxtyping_at_import() -> None:
    wrong = [
        str(one)
        for one in ALL
        if one.owner == "model"
        and one.function is None
        and one.module.split(".")[0] not in OF_MODEL_AT_TOP
    ]
    assert not wrong, "\n".join(wrong)


def test_only_the_trunk_and_the_text_tower_know_transformers() -> None:
    of_tokenizer = [i for i in ALL if i.owner != "lm"]  # which is made of transformers' classes
    users = [i for i in of_tokenizer if i.module.split(".")[0] == "transformers"]
    assert {i.file.name for i in users} <= {"trunk.py", "trunk_source.py", "text_tower.py"}
    assert all(i.function for i in users)


def test_the_text_tower_is_only_for_evaluation() -> None:
    """A tokenizer runs without it."""
    users = {one.owner for one in INTERNAL if one.module == "semhitok.model.text_tower"}
    assert users <= {"evaluate", "cli"}


def test_front_door_imports_nothing_but_the_import_machinery() -> None:
    top = {
        i.module
        for i in ALL
        if i.file == SOURCE / "__init__.py" and not i.module.startswith("semhitok.")
    }
    assert top <= {"__future__", "importlib", "typing"}


def loaded(code: str) -> list[str]:
    """Which of the heavy packages are there after `code`, in a Python of its own."""
    heavy = ["torch", "transformers", "numpy", "safetensors", "huggingface_hub", "PIL", "pyarrow"]
    code += f"\nimport sys; print([m for m in {heavy} if m in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    )
    found = ast.literal_eval(run.stdout.strip().splitlines()[-1])
    return [str(name) for name in found]


def test_import_semhitok_loads_neither_torch_nor_anything_else() -> None:
    assert loaded("import semhitok; semhitok.__version__; dir(semhitok)") == []
    assert loaded("from semhitok import SemHiTokError") == []


def test_the_tokenizer_class_loads_no_transformers() -> None:
    assert set(loaded("from semhitok import SemHiTok")) <= {"torch", "numpy"}


def test_public_names() -> None:
    assert sorted(semhitok.__all__) == dir(semhitok)
    assert {"SemHiTok", "SemHiTokError", "__version__"} <= set(semhitok.__all__)
    for name in semhitok.__all__:
        assert getattr(semhitok, name) is not None
    from semhitok.model.tokenizer import SemHiTok

    assert semhitok.SemHiTok is SemHiTok
    with pytest.raises(AttributeError, match="module 'semhitok' has no attribute 'Semhitok'"):
        _ = semhitok.Semhitok


def test_version_is_the_projects() -> None:
    import tomllib

    project = SOURCE.parents[1] / "pyproject.toml"
    if not project.is_file():
        pytest.skip("an installed package stands without its pyproject.toml")
    assert tomllib.loads(project.read_text())["project"]["version"] == semhitok.__version__
