"""`make mlflow-sync`: mistakes in the call."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments.engine.outcome import mlflow_sync


def test_outputs_without_a_table_and_a_wrong_key_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mlflow_sync.main([f"outputs={tmp_path}"]) == 2
    assert f"outputs={tmp_path}: no ablation has a table there" in capsys.readouterr().err
    assert mlflow_sync.main(["output=x"]) == 2
    assert "output=x: there is no option output; did you mean outputs?" in capsys.readouterr().err


def test_a_table_whose_plan_is_damaged_is_named_and_the_status_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ansc").mkdir()
    (tmp_path / "ansc" / "plan.json").write_text("{")
    (tmp_path / "ansc" / "table.json").write_text("{}")
    assert mlflow_sync.main([f"outputs={tmp_path}"]) == 1
    assert "ansc: not logged" in capsys.readouterr().err
