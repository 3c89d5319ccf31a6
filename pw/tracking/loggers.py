"""Where a training is logged: `tracking=mlflow|wandb|tensorboard|none`, through the interface of Lightning's loggers.

To add a store, write such a dataclass in a module of your folder and name it in `conf/tracking/<name>.yaml`:

    @dataclass(frozen=True)
    class Comet(Tracking):
        workspace: str

        def check(self) -> None: ...
        def open(self, live, outputs, identity): return CometLogger(…), key
        def add_video(self, logger, file, name, step): logger.experiment.log_video(…)

`pw.tracking.relay` calls them in a process of its own. They may be slow, and may raise.
"""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pw.io.files import digest
from pw.run.settings import Tracking
from pw.tracking.mlflow_log import (
    connect,
    database_url,
    experiment_id,
    locked_database,
    mlflow_folder,
    prepare_database,
)


@dataclass(frozen=True)
class Live:
    """A training that is logged while it runs.

    folder      of the training, with its curves
    experiment  the name of its ablation, or `train`
    params      what tells it from the others
    tags        strings; with the tag KEY of `mlflow_log` a table's run takes its place
    """

    folder: Path
    experiment: str
    name: str
    params: dict[str, object]
    tags: dict[str, str]
    began: float = field(default_factory=time.time)  # s since 1970


@dataclass(frozen=True)
class MLflow(Tracking):
    """uri: of a server, as http://host:5000; None: the database in `outputs/mlflow`."""

    uri: str | None

    def open(self, live: Live, outputs: Path, identity: str | None) -> tuple[Any, str]:
        """(logger of a new run, or of the run `identity` if that is still there; its identity)."""
        home = mlflow_folder(outputs)
        with locked_database(home) if self.uri is None else nullcontext():
            if self.uri is None:
                prepare_database(home)
            client = connect(self.uri or database_url(home))
            experiment = experiment_id(client, live.experiment, home if self.uri is None else None)
            if identity is not None and _has_run(client, identity):
                client.update_run(identity, "RUNNING")
                return _MLflowRun(client, identity), identity
            began = int(1000 * live.began)  # before the relay has loaded MLflow
            identity = client.create_run(experiment, began, dict(live.tags), live.name).info.run_id
        logger = _MLflowRun(client, identity)
        logger.log_hyperparams(live.params)
        return logger, identity

    def add_video(self, logger: Any, file: Path, name: str, step: int) -> None:
        """file: an .mp4; name: its folder, as samples/update-000100"""
        logger.client.log_artifact(logger.identity, str(file), name)


class _MLflowRun:
    """The methods of Lightning's MLFlowLogger, whose import would take the relay 10 s of CPU and 600 MB."""

    def __init__(self, client: Any, identity: str) -> None:
        self.client, self.identity = client, identity

    def log_hyperparams(self, params: Mapping[str, object]) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.identity, params=[Param(key, str(value)[:500]) for key, value in params.items()])

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(self.identity, [Metric(key, value, now, step) for key, value in metrics.items()])

    def finalize(self, status: str) -> None:
        self.client.set_terminated(self.identity, {"success": "FINISHED", "failed": "FAILED"}.get(status, status))


def _has_run(client: Any, identity: str) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(identity).info.lifecycle_stage == "active"
    except MlflowException:
        return False


@dataclass(frozen=True)
class WandB(Tracking):
    """mode: `offline` writes to `outputs/wandb` alone, for `wandb sync`."""

    project: str
    entity: str | None
    mode: Literal["online", "offline"]

    def check(self) -> None:
        _require("wandb", "wandb")
        is_online = self.mode == "online" and os.environ.get("WANDB_MODE", "online") == "online"
        if is_online and not _has_wandb_key():
            raise ValueError(
                "tracking=wandb: there is no API key: `wandb login` or WANDB_API_KEY gives one, tracking.mode=offline "
                "needs none"
            )

    def open(self, live: Live, outputs: Path, identity: str | None) -> tuple[Any, str]:
        """As `MLflow.open`; a run's identity follows from its folder and experiment."""
        from lightning.pytorch.loggers import WandbLogger

        folder = outputs.resolve() / "wandb"
        folder.mkdir(parents=True, exist_ok=True)
        identity = identity or f"{live.folder.name}-{digest([live.experiment, live.name])}"
        logger = WandbLogger(
            live.name,
            folder.parent,
            id=identity,
            project=self.project,
            entity=self.entity,
            group=live.experiment,
            tags=[f"{key}:{value}"[:64] for key, value in live.tags.items() if not key.startswith("pw.")],
            offline=self.mode == "offline",
            resume="allow",
            reinit="create_new",  # else all trainings of an ablation are one run
        )
        logger.log_hyperparams(live.params)
        return logger, identity

    def add_video(self, logger: Any, file: Path, name: str, step: int) -> None:
        logger.log_video(f"{name.partition('/')[0]}/{file.stem}", [str(file)], step, format=["mp4"])

    def close(self, logger: Any, status: str) -> None:
        logger.experiment.finish(0 if status == "success" else 1)


@dataclass(frozen=True)
class TensorBoard(Tracking):
    """Event files in `outputs/tensorboard/<experiment>/<name>`; `tensorboard --logdir outputs/tensorboard` shows them.

    A video is shown as its frames side by side: TensorBoard plays GIFs only, and makes them by moviepy.
    """

    def check(self) -> None:
        _require("tensorboard", "tensorboard")

    def open(self, live: Live, outputs: Path, identity: str | None) -> tuple[Any, str]:
        """As `MLflow.open`; a run's identity is its folder."""
        from lightning.pytorch.loggers import TensorBoardLogger

        version = live.name.replace("/", " ")
        logger = TensorBoardLogger(outputs.resolve() / "tensorboard", live.experiment, version, default_hp_metric=False)
        if identity is None:
            logger.log_hyperparams(live.params)
        return logger, version

    def add_video(self, logger: Any, file: Path, name: str, step: int) -> None:
        import numpy as np

        from pw.io.video import read_video

        frames = np.concatenate([*read_video(file)[:: max(1, _frames(file) // 4)]], 1)
        logger.experiment.add_image(f"{name.partition('/')[0]}/{file.stem}", frames, step, dataformats="HWC")


def _has_wandb_key() -> bool:
    """Whether W&B has an API key. Its own answer comes last: with a key it asks the server, which takes seconds."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    files = [os.environ["NETRC"]] if "NETRC" in os.environ else ["~/.netrc", "~/_netrc"]
    if any(Path(file).expanduser().exists() for file in files):
        return True
    import wandb

    return wandb.login(prompt=False, verify=False)


def _frames(file: Path) -> int:
    from pw.io.video import probe

    return probe(file).frames


def _require(package: str, choice: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"tracking={choice}: the package {package} is missing: `uv pip install {package}` (or pip) adds it, "
            "tracking=mlflow needs none"
        )
