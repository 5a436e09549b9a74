"""What every command promises: help without heavy imports, one line a refusal, exit codes."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from semhitok import cli
from semhitok.errors import DataError

HEAVY = ("torch", "numpy", "transformers", "pyarrow", "PIL", "rich")


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of stderr of a call that must be refused."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from semhitok.cli import main; assert main(['--help']) == 0\n"
        "assert main(['encode', '--help']) == 0\n"
        "assert main(['lm', 'prepare', '--help']) == 0\n"
        f"print('loaded:', [m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.endswith("loaded: []\n"), done.stdout + done.stderr
    commands = "info encode decode demo train evaluate study tokenize lm"
    for command in commands.split():
        assert f"  {command} " in done.stdout


@pytest.mark.slow
def test_help_is_fast() -> None:
    def once() -> float:
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", "from semhitok.cli import main; main(['--help'])"])
        return time.perf_counter() - begun

    assert min(once() for _ in range(5)) < 0.5


@pytest.mark.parametrize(
    "command",
    [
        "info",
        "encode",
        "decode",
        "demo",
        "train",
        "evaluate",
        "study",
        "tokenize",
        "lm",
        "lm prepare",
    ],
)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*command.split(), "--help"]) == 0
    assert f"semhitok {command}" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("semhitok 0.")


def test_no_command_shows_help_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Commands:" in err


def test_unknown_command_names_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'encode'" in refusal(capsys, "encod")


def test_unknown_option_names_its_neighbours(capsys: pytest.CaptureFixture[str]) -> None:
    line = refusal(capsys, "encode", "x", "--out", "y", "--batch-sizes", "3")
    assert "--batch-size" in line and "semhitok encode --help" in line


@pytest.mark.parametrize(
    "arguments",
    [
        ("encode",),
        ("encode", "x"),
        ("encode", "x", "--out", "y", "--crop", "round"),
        ("encode", "x", "--out", "y", "--batch-size", "0"),
        ("train", "tiny", "--data", "x", "--out", "y", "--probe", "only-one"),
    ],
)
def test_wrong_use_is_one_line(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "--help" in refusal(capsys, *arguments)


def raising(error: BaseException) -> object:
    def command(arguments: list[str]) -> int:
        raise error

    return command


def test_interruption_is_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_run", raising(KeyboardInterrupt()))
    assert cli.main(["info", "tiny"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (DataError("one\nline"), "error: one line"),
        (PermissionError(13, "Permission denied", "/x"), "error: /x: Permission denied"),
        (OSError(28, "No space left on device"), "error: the disk: No space left"),
        (MemoryError(), "error: out of memory"),
    ],
)
def test_what_a_user_can_mend_is_2(
    error: Exception,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def describe(name: str) -> dict[str, object]:
        raise error

    monkeypatch.setattr(sys.modules["semhitok.cli.info"], "describe", describe)
    assert expected in refusal(capsys, "info", "tiny")


@pytest.mark.parametrize("error", [ValueError("ours"), RuntimeError("ours"), OSError(5, "ours")])
def test_a_defect_of_ours_keeps_its_traceback(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe(name: str) -> dict[str, object]:
        raise error

    monkeypatch.setattr(sys.modules["semhitok.cli.info"], "describe", describe)
    with pytest.raises(type(error), match="ours"):
        cli.main(["info", "tiny"])


def test_ranks_are_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert cli.main(["encod"]) == 2
    assert capsys.readouterr().err.startswith("error (rank 3): ")


def test_a_reader_that_leaves_is_no_error() -> None:
    code = "from semhitok.cli import main; import sys; sys.exit(main(['--help']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0
