"""The command ``training`` measures what its table shows."""

import pytest

from experiments.speed import overhead
from tests.experiments.common import lines, result, run

pytestmark = pytest.mark.usefixtures("as_a_user")


@pytest.mark.slow
def test_training_measures_its_five_parts(tmp_path, capsys):
    assert run("training", "--quick", "--out", tmp_path / "run") == 0
    rows = result(tmp_path / "run")["rows"]
    assert [row["part"] for row in rows] == ["host loop", "devices", "members", "checkpoint", "lengths"]
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert len(numbers) == 14
    assert min(numbers) > 0
    text = capsys.readouterr().out
    assert "\n".join(overhead.table(rows)) in text
    assert text.endswith(f"written to {tmp_path / 'run'}: config.json, metrics.jsonl, result.json, checkpoints/\n")
    assert [line["split"] for line in lines(tmp_path / "run")] == [row["part"] for row in rows]
