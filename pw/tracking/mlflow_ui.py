"""`pw mlflow`: MLflow's UI on this machine, and the URLs of each ablation's latest table."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote

from pw.io.arguments import Command, ConfigError, number, option
from pw.io.host import HOST, check_port
from pw.tracking.mlflow_log import (
    ENVIRONMENT,
    VIEW,
    TrackingError,
    database_url,
    latest_tables,
    locked_database,
    mlflow_folder,
    prepare_database,
)


@dataclass(frozen=True)
class MlflowOptions:
    """The options of `pw mlflow`."""

    port: int = option(5000, "where the UI listens", read=number(1024, 65535))
    outputs: Path = option(Path("outputs"), "folder of all results")


def run_mlflow(options: MlflowOptions) -> NoReturn:
    """Replace this process by the server of the UI, which runs until Ctrl-C."""
    port, outputs = options.port, options.outputs
    home = mlflow_folder(outputs)
    if not (home / "mlflow.db").exists():
        raise ConfigError(f"no MLflow database in {home} yet: run `make ablation name=ansc` first")
    check_port(port, "an MLflow UI already open")
    try:
        with locked_database(home):
            prepare_database(home)
            pages = page_urls(outputs, port)
    except TrackingError as error:
        raise ConfigError(str(error)) from error
    print(f"MLflow on http://{HOST}:{port} in about 20 seconds; Ctrl-C stops it")
    for ablation, urls in pages.items():
        print(f"\n{ablation}, latest table")
        print("".join(f"  {page:<8} {url}\n" for page, url in urls.items()), end="")
    sys.stdout.flush()
    command = ui_command(outputs, port)
    os.execve(command[0], command, {**os.environ, **ENVIRONMENT, "PYTHONWARNINGS": "ignore"})


def page_urls(outputs: Path, port: int = 5000) -> dict[str, dict[str, str]]:
    """Ablation -> {"runs", "compare"}: URLs of its latest table, as a list and side by side."""
    pages = {}
    for name, table in latest_tables(mlflow_folder(outputs)).items():
        rows = quote(json.dumps(table.rows, separators=(",", ":")), safe=",")
        ui = f"http://{HOST}:{port}/#"
        pages[name] = {
            "runs": f"{ui}/experiments/{table.experiment}/runs?viewStateShareKey={VIEW}",
            "compare": f"{ui}/compare-runs?runs={rows}&experiments={quote(json.dumps([table.experiment]))}",
        }
    return pages


def ui_command(outputs: Path, port: int) -> list[str]:
    """The command that serves the UI, only on this machine."""
    home = mlflow_folder(outputs)
    store = database_url(home)
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", store, "--registry-store-uri", store),
        *("--artifacts-destination", str(home / "artifacts"), "--uvicorn-opts", "--log-level warning"),
    ]


main = Command(MlflowOptions, run_mlflow)
