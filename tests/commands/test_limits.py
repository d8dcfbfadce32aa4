"""What says which images are read at all, in every program that reads some."""

import argparse

import pytest

import predict
import prepare
from base.arguments import add_limit_options, path_of
from datasets.images import Limits


@pytest.mark.parametrize("name", ["maxMegapixels", "maxMegabytes"])
@pytest.mark.parametrize(
    ("value", "is_taken"), [("0", False), ("1", True), ("1048576", True), ("1048577", False)]
)
def test_limits_have_limits(
    name: str, value: str, is_taken: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = argparse.ArgumentParser()
    add_limit_options(parser)
    if is_taken:
        assert getattr(parser.parse_args([f"--{name}", value]), name) == int(value)
        return
    with pytest.raises(SystemExit):
        parser.parse_args([f"--{name}", value])
    assert f"--{name}" in capsys.readouterr().err


def test_defaults_are_those_of_a_run() -> None:
    parser = argparse.ArgumentParser()
    add_limit_options(parser)
    given = parser.parse_args([])
    assert (given.maxMegabytes << 20, given.maxMegapixels * 10**6) == (
        Limits().bytes,
        Limits().pixels,
    )
    assert given.followLinks is Limits().links is False


def test_prepare_hands_its_limits_on() -> None:
    words = ["check", "--data_dir", "d", "--maxMegabytes", "3", "--maxMegapixels", "5"]
    parser = prepare.build_parser()
    origin = prepare._origin(parser.parse_args([*words, "--followLinks", "--cacheGB", "2"]))
    assert origin.limits == Limits(3 << 20, 5 * 10**6, True)
    assert origin.cache.most == 2 * 10**9
    assert prepare._origin(parser.parse_args(words)).cache.most is None


def test_predict_has_them_too() -> None:
    given = predict.build_parser().parse_args(["a.pt", "b", "--maxMegabytes", "7"])
    assert given.maxMegabytes == 7


@pytest.mark.parametrize("text", ["", "a\nb", "a\tb", "a\x00b", "a\x1b[0m"])
def test_a_path_that_breaks_a_line_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be a path here: rename it"):
        path_of(text)


def test_a_path_is_taken_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/you")
    assert path_of("~/runs") == "/home/you/runs"
    assert path_of("a b/\u65e5'\"$x") == "a b/\u65e5'\"$x"
