"""Scores of an ablation's runs -> its `table`, the `verdict` on its claim and its record, and MLflow."""
