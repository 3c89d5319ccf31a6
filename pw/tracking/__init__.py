"""What is logged of trainings and tables. No result is computed from it.

Begin with `relay`, which passes the files of a running training on to a store of `loggers`; `live` starts it.
`mlflow_log` logs the table of an ablation, `mlflow_ui` is `pw mlflow`.
"""
