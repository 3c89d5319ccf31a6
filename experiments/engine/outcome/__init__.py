"""Scores of an ablation -> its `table`, the `verdict` on its claim with the record of it, and MLflow runs."""
