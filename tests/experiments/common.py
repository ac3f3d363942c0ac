"""What tests of experiments share: a command as a user types it, and the files that it leaves."""

import json
from pathlib import Path

from experiments.__main__ import main
from tests.rejects import is_one_sentence

ROOT = Path(__file__).parent.parent.parent


def run(*arguments):
    """The exit status of ``python -m experiments`` with these arguments."""
    return main([str(argument) for argument in arguments])


def refuses(capsys, flags, name, rule="", got=""):
    """The command ends with status 2 and one sentence (tests/rejects.py). Returns it."""
    capsys.readouterr()
    assert run(*flags) == 2
    return said(capsys, name, rule, got)


def said(capsys, name, rule="", got=""):
    """The one line of standard error is one sentence. Returns it."""
    text = capsys.readouterr().err
    assert text.startswith("error: ")
    assert text.endswith("\n")
    is_one_sentence(text.removeprefix("error: ")[:-1], name, rule, got)
    return text


def lines(folder):
    """The lines of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def result(folder):
    return json.loads((folder / "result.json").read_text())


def is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def digest_in(path):
    """The digest that a picture of result files holds, or None."""
    from PIL import Image

    with Image.open(path) as picture:
        return picture.info.get("Description")


def drop_newest_checkpoint(folder):
    """Remove it, as if the run had been killed before it was written. Returns the step of the one before."""
    *_, before, newest = sorted(int(path.stem) for path in (folder / "checkpoints").glob("*.npz"))
    (folder / "checkpoints" / f"{newest}.npz").unlink()
    return before
