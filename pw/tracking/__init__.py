"""MLflow: log an ablation from its files (`mlflow_log`) and show the UI (`mlflow_ui`, `pw mlflow`).

No result is computed from the logs.
"""
