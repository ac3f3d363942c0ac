"""What a test asks of an error: one sentence that names the argument, the rule and what came."""

import pytest


def rejects(call, name, rule="", got="", kind=(TypeError, ValueError)):
    """``call()`` raises one sentence with the name of the argument, the rule and what came. Returns it.

    The wording between these is free, so that a better sentence breaks no test.
    """
    with pytest.raises(kind) as caught:
        call()
    text = str(caught.value)
    assert text.endswith("."), f"a full stop is missing: {text!r}"
    assert "\n" not in text, f"more than one line: {text!r}"
    for part in (name, rule, got):
        assert str(part) in text, f"{part!r} is not in {text!r}"
    return text
