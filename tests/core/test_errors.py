"""Errors that a user can cause end a command in one line and an exit code; bugs keep their traceback."""

import pytest

from spirit_jax.core.errors import JobError, SpiritError, exit_codes


class NamedError(SpiritError):
    """As folders define them."""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SpiritError("x"), 2),
        (NamedError("x"), 2),
        (JobError("x"), 1),
        (FileExistsError("x"), 2),
        (PermissionError("x"), 1),
        (OSError("x"), 1),
        (ImportError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
    ids=repr,
)
def test_what_a_user_can_cause_is_one_line_and_an_exit_code(error, code, capsys):
    with pytest.raises(SystemExit) as stop, exit_codes("spirit-jax x", interrupted="x"):
        raise error
    assert stop.value.code == code
    assert capsys.readouterr().err == "spirit-jax x: error: x\n"


@pytest.mark.parametrize("error", [ValueError("x"), TypeError("x"), KeyError("x")], ids=repr)
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised, exit_codes("spirit-jax x"):
        raise error
    assert raised.value is error


def test_details_follow_in_lines_of_their_own(capsys):
    with pytest.raises(SystemExit), exit_codes("p"):
        raise SpiritError("two tensors differ", ["a: 1 -> 2", "b: 3 -> 4"])
    assert capsys.readouterr().err == "p: error: two tensors differ\n  a: 1 -> 2\n  b: 3 -> 4\n"


def test_a_message_of_several_lines_becomes_one_and_is_never_empty(capsys):
    for error, line in ((SpiritError("a\n  b"), "a b"), (MemoryIsFullError(), "MemoryIsFullError")):
        with pytest.raises(SystemExit), exit_codes("p"):
            raise error
        assert capsys.readouterr().err == f"p: error: {line}\n"


class MemoryIsFullError(JobError):
    """An error that is raised without a message."""
