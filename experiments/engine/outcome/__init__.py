"""Scores of an ablation's runs -> its table, the verdict on its claim, MLflow, and the record in experiments/results.

Begin with `table`, then `verdict`.
"""
