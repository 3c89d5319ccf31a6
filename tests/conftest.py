"""Settings for all tests, and the closed-form world that several folders test against."""

from __future__ import annotations

import gc
import os
import signal

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests run beside other work; set before torch is imported
os.environ["PW_TRACKING"] = "none"  # a training that is followed starts a process of its own

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings

# no deadline: a busy machine is not a failure. derandomize: the same examples on every machine
settings.register_profile("pw", deadline=None, derandomize=True)
settings.load_profile("pw")


# Whole files go to one of two workers, in this order: what takes long must not come last, when the other is idle.
LONGEST = (
    "tests/engine/test_ablation.py",
    "tests/stages/test_together.py",
    "tests/test_faults.py",
    "tests/generate/test_generate_sharded.py",
    "tests/engine/test_launcher.py",
    "tests/test_docs.py",
    "tests/test_cli.py",
    "tests/test_package.py",
    "tests/benchmarks/systems/test_systems_diffusers.py",
    "tests/stages/test_stage.py",
    "tests/run/test_conf.py",
    "tests/stages/test_resume.py",
    "tests/prepare/test_encode.py",
    "tests/tracking/test_tracking.py",
    "tests/generate/test_generate.py",
    "tests/benchmarks/systems/test_pixelwizard_system.py",
    "tests/benchmarks/measure/test_score.py",
)


def pytest_configure() -> None:
    """Signals as a terminal has them: a shell that starts the tests in the background has them ignore Ctrl-C, nohup has
    them ignore a terminal that closes, and processes that tests start would, too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first (`--no-loadscope-reorder` keeps xdist from sorting by the number of tests)."""
    place = {file: i for i, file in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(LONGEST)))


def pytest_collection_finish() -> None:
    """What the tests import stays: `pw generate` collects garbage four times a video, and would look through it all."""
    gc.collect()
    gc.freeze()


@dataclass(frozen=True)
class GaussianWorld:
    """The exact solution for data N(mean, sd^2): what a perfectly trained shortcut network would answer.

    With mean 0 the state at sigma is N(0, S^2), S^2 = (1 - sigma)^2 sd^2 + sigma^2, and the probability-flow ODE
    dx/dsigma = x S'/S keeps x / S constant. So a step sigma -> end lands on x S(end) / S(sigma); its mean velocity is
    the difference over the span. A mean adds (1 - sigma) mean to every state of a path, and -mean to its velocity.
    """

    sd: float
    schedule: Any
    mean: float = 0.0

    def spread(self, sigma: Any) -> Any:
        """S(sigma)."""
        return ((1 - sigma) ** 2 * self.sd**2 + sigma**2) ** 0.5

    def velocity(self, state: Any, timestep: Any, stride: Any) -> Any:
        """The mean velocity over the step; at stride 0 the velocity of the ODE."""
        sigma = self.schedule.sigma(timestep)
        end = self.schedule.sigma((timestep - stride).clamp(min=0))
        spread = self.spread(sigma)
        # S'/S at stride 0: S S' = sigma - (1 - sigma) sd^2
        slope = (sigma - (1 - sigma) * self.sd**2) / spread**2
        span = (sigma - end).clamp(min=1e-300)
        rate = slope.where(stride == 0, (1 - self.spread(end) / spread) / span)
        rate, mean = (x.to(state.dtype).view(-1, *[1] * (state.ndim - 1)) for x in (rate, (1 - sigma) * self.mean))
        return (state - mean) * rate - self.mean


@pytest.fixture(scope="session")
def gaussian_world() -> type[GaussianWorld]:
    """`gaussian_world(sd, schedule).velocity` is the perfect shortcut velocity of Gaussian data."""
    return GaussianWorld


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    """(folder, pipeline): a small random Wan pipeline as diffusers has it, and where it is saved."""
    from small_pipeline import write_pipeline

    folder = tmp_path_factory.mktemp("pipeline")
    made = write_pipeline(folder)
    gc.freeze()  # transformers and diffusers' pipelines, imported by now
    return folder, made
