"""What is logged of trainings and tables. No result is computed from it.

Begin with `relay`: it passes the files of a running training on, by the stores of `loggers`; `live` starts it. `mlflow_log`
logs the table of an ablation, `mlflow_ui` is `pw mlflow`.
"""
