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
from pw.io.paths import ROOT, SUITE
from pw.tracking.mlflow_log import (
    ENVIRONMENT,
    VIEW,
    TrackingError,
    database_url,
    latest_tables,
    locked_database,
    mlflow_folder,
    newest_runs,
    prepare_database,
)

PAGE = "PW_MLFLOW_PAGE"  # environment variable of pw.tracking.ui_app
PLUGIN = Path(__file__).with_name("plugin")  # has the entry point by which MLflow finds it
MODE = "workflowType=machine_learning"  # the UI's other mode is for chatbots


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
        raise ConfigError(f"no MLflow database in {home} yet: `make train` or `make ablation name=ansc` makes it")
    check_port(port, "an MLflow UI already open")
    try:
        with locked_database(home):
            prepare_database(home)
            pages, first = page_urls(outputs, port), first_page(home)
    except TrackingError as error:
        raise ConfigError(str(error)) from error
    print(f"MLflow on http://{HOST}:{port} in about 20 seconds, it opens on the latest runs; Ctrl-C stops it")
    for ablation, urls in pages.items():
        print(f"\n{ablation}, latest table")
        print("".join(f"  {page:<8} {url}\n" for page, url in urls.items()), end="")
    sys.stdout.flush()
    command = ui_command(outputs, port)
    os.execve(command[0], command, ui_environment(first))


def ui_environment(first: str) -> dict[str, str]:
    """The environment of `ui_command`. first: of `first_page`; "" opens MLflow's own first page"""
    path = [str(SUITE), str(ROOT), str(PLUGIN), *filter(None, [os.environ.get("PYTHONPATH")])]
    more = {"PYTHONWARNINGS": "ignore", "PYTHONPATH": os.pathsep.join(dict.fromkeys(path)), PAGE: first}
    return {**os.environ, **ENVIRONMENT, **more}


def first_page(home: Path) -> str:
    """The part after `#` of the address of the newest runs: of the table, unless trainings run. Inside the lock."""
    runs = newest_runs(home)
    if runs is None:
        return "/experiments"
    experiment, is_running, has_table = runs
    view = f"&viewStateShareKey={VIEW}" if has_table and not is_running else ""
    return f"/experiments/{experiment}/runs?{MODE}{view}"


def page_urls(outputs: Path, port: int = 5000) -> dict[str, dict[str, str]]:
    """Ablation -> {"runs", "compare"}: URLs of its latest table, as a list and side by side."""
    pages = {}
    for name, table in latest_tables(mlflow_folder(outputs)).items():
        rows = quote(json.dumps(table.rows, separators=(",", ":")), safe=",")
        ui = f"http://{HOST}:{port}/#"
        pages[name] = {
            "runs": f"{ui}/experiments/{table.experiment}/runs?{MODE}&viewStateShareKey={VIEW}",
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
        *("--app-name", "pixelwizard"),  # pw.tracking.ui_app, by the entry point in PLUGIN
    ]


main = Command(MlflowOptions, run_mlflow)
