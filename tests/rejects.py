"""What a test asks of an error: one sentence that names the argument, the rule and what came."""

import re

import pytest


def is_one_sentence(text, name, rule="", got=""):
    """The text is one sentence with the name of the argument, the rule and what came, which follows the last "got "."""
    assert text.endswith("."), f"a full stop is missing: {text!r}"
    assert "\n" not in text, f"more than one line: {text!r}"
    assert not re.search(r"\. [A-Z]", text), f"more than one sentence: {text!r}"
    for part in (name, rule):
        assert str(part) in text, f"{part!r} is not in {text!r}"
    came = text[max(text.rfind("got "), 0) :]
    assert str(got) in came, f"{got!r} is not in {came!r}, the end of {text!r}"


def rejects(call, name, rule="", got="", kind=(TypeError, ValueError)):
    """``call()`` raises one sentence with the name of the argument, the rule and what came. Returns it.

    The wording between these is free, so that a better sentence breaks no test.
    """
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    is_one_sentence(text, name, rule, got)
    return text
