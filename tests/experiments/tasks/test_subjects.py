"""``python -m experiments subjects`` in its small size: its files, and a run that resumes."""

import pytest

from tests.experiments.common import is_png, refuses, result, run

pytestmark = pytest.mark.usefixtures("quick_compiler", "as_a_user")


def test_subjects_must_be_of_all_kinds(capsys, tmp_path):
    refuses(capsys, ["subjects", "--subjects", 6, "--out", tmp_path / "run"], "--subjects", "a multiple of 4", 6)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_subjects_resume_to_the_same_scores(tmp_path):
    folder = tmp_path / "run"
    flags = ["subjects", "--quick", "--trials", 10, "--out", folder]
    assert run(*flags) == 0
    whole = result(folder)
    assert whole["networks"] == 2 * 3 * 3 * 8 * 5
    assert is_png(folder / "subjects.png")
    by_model = {(row["model"], row["width"]): row for row in whole["rows"]}
    assert [by_model["mgu", width]["parameters"] for width in (1, 2, 4)] == [14, 30, 74]
    assert abs(by_model["chance", None]["nats"] - 0.6931) < 1e-4
    assert by_model["subject", None]["gap"] == 0
    for name in ("gru", "true-both", "beside-one"):
        (folder / f"{name}.json").unlink()
    assert run(*flags, "--resume") == 0
    again = result(folder)
    assert again["rows"] == whole["rows"]
    assert again["winner"] == whole["winner"]
