"""What goes wrong ends a program with one line and its status; our own faults stay tracebacks."""

import errno

import pytest

from base.errors import Failed, Interrupted, Refused, clear_errors

CASES = [
    (Refused("no such class"), 2, "error: no such class"),
    (Refused("too many", limit="pixels"), 2, "error: too many: raise it"),
    (Refused("too many", limit="others"), 2, "error: too many"),
    (Failed("the disk is full"), 1, "error: the disk is full"),
    (Failed("full", limit="pixels"), 1, "error: full: raise it"),
    (FileNotFoundError(errno.ENOENT, "No such file", "a.txt"), 2, "error: a.txt: No such file"),
    (OSError(errno.ENOSPC, "No space left"), 1, "error: No space left"),
    (OSError(errno.EMFILE, "Too many"), 1, "error: Too many: raise `ulimit -n`"),
    (OSError(errno.ENFILE, "Too many"), 1, "error: Too many: raise `ulimit -n`"),
    (OSError(errno.ENOMEM, "No memory"), 1, "error: No memory"),
    (OSError(errno.EAGAIN, "again"), 1, "error: this user may start no more processes"),
    (RuntimeError("can't start new thread"), 1, "error: this user may start no more processes"),
    (RuntimeError("Too many open files. Communicate"), 1, "error: too many open files: raise"),
    (Interrupted(15), 143, "stopped by SIGTERM"),
]


@pytest.mark.parametrize(("error", "status", "said"), CASES, ids=lambda value: str(value)[:30])
def test_an_error_is_a_line_and_a_status(
    error: BaseException,
    status: int,
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/main.py"])
    with pytest.raises(SystemExit) as stop, clear_errors({"pixels": "raise it"}):
        raise error
    assert stop.value.code == status
    told = capsys.readouterr().err
    assert told.startswith(f"main.py: {said}")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), RuntimeError("shapes"), OSError(errno.EPERM, "not permitted"), KeyError(1)],
)
def test_our_own_faults_are_shown_as_they_are(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, clear_errors():
        raise error
    assert caught.value is error
