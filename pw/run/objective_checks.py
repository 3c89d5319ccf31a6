"""Checks of an objective against grid, solver and trainer. Each raises ConfigError with the key and the remedy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pw.io.arguments import ConfigError
from pw.method.mean_flow import MeanFlow
from pw.method.solver import JumpAndRenoise
from pw.run.compose import override_key
from pw.run.strategies import as_config_error

if TYPE_CHECKING:
    from pw.run.build import Run

PLAIN_TOKENS = 8192  # of a clip, above which plain attention, which stores the scores of all pairs, is too large
# key of the objective -> (key, its value) with which it has no effect, and one with which it has
UNUSED = {
    "step": ("derivative", "exact", "difference"),
    "constant": ("power", 0, 1),
    "huber": ("distance", "squared", "pseudo_huber"),
    "updates": ("doublings", 0, 4),
}
BF16_STEP = 0.005  # of a difference, below which it is the rounding of bf16  (D119)


def check_objective(run: Run) -> None:
    """The grid is one of the schedule, and the network is asked for steps that the objective trains."""
    timesteps = run.sampling.timesteps
    if timesteps is not None and (run.sampling.shift is not None or run.sampling.start != 1):
        raise ConfigError(
            f"sampling.timesteps={list(timesteps)}: an explicit grid does not use sampling.shift={run.sampling.shift} "
            f"or sampling.start={run.sampling.start:g}; set sampling.shift=null sampling.start=1"
        )
    if timesteps is not None and timesteps[0] > run.schedule.num_timesteps:
        raise ConfigError(f"sampling.timesteps={list(timesteps)}: at most N={run.schedule.num_timesteps}")
    for name in ("num_steps", "solution_steps"):
        if (steps := getattr(run.sampling, name)) > run.schedule.num_timesteps:
            raise ConfigError(
                f"sampling.{name}={steps}: more steps than schedule.num_timesteps={run.schedule.num_timesteps}"
            )
    with as_config_error():
        run.objective.check(run.schedule)
    _check_used(run)
    if run.sampling.stride == "grid" and not run.objective.trains_strides:
        raise ConfigError(
            f"sampling.stride=grid: objective={run.config.choices['objective']} never trained a stride, its samples "
            "would look worse than the model is; leave it at auto"
        )
    _check_solver(run)


def _check_solver(run: Run) -> None:
    """A solver of jumps to data has an objective that trains them, and an objective of jumps alone such a solver."""
    objective, solver = (f"{group}={run.config.choices[group]}" for group in ("objective", "solver"))
    if not isinstance(run.solver, JumpAndRenoise):
        if run.objective.jumps_to_data == "only":
            raise ConfigError(
                f"{solver}: takes steps from timestep to timestep, {objective} trains jumps to data alone; set "
                "solver=consistency, or objective=shortcut or meanflow"
            )
        return
    if run.objective.jumps_to_data == "never":
        raise ConfigError(
            f"{solver}: jumps from every timestep to data, which {objective} does not train; set solver=euler, or "
            "objective=consistency or meanflow"
        )
    if not run.feeds_strides():
        raise ConfigError(
            f"sampling.stride={run.sampling.stride}: {solver} asks the network for jumps, whose stride is the "
            "timestep; leave it at auto, or set solver=euler"
        )
    for key, neutral in (("sizes", None), ("init", "noise")):
        if (value := getattr(run.sampling, key)) != neutral:
            words = list(value) if isinstance(value, tuple) else value
            raise ConfigError(
                f"sampling.{key}={words}: {solver} draws its fresh noise from the initial noise alone; leave it out, "
                "or set solver=euler with objective=meanflow or shortcut"
            )


def _check_used(run: Run) -> None:
    """What is typed for the objective has an effect."""
    objective, typed = vars(run.objective), {override_key(override): override for override in run.config.overrides}
    for name, (switch, idle, other) in UNUSED.items():
        if objective.get(switch) == idle and (override := typed.get(f"objective.{name}")):
            raise ConfigError(
                f"{override}: has no effect with objective.{switch}={idle}; leave it out, or set "
                f"objective.{switch}={other}"
            )


def check_derivative(run: Run) -> None:
    """MeanFlow's derivative can be computed, and resolved, where the run is trained."""
    objective, trainer = run.objective, run.trainer
    if not isinstance(objective, MeanFlow):
        return
    is_bf16 = run.train.precision == "bf16"
    if objective.derivative == "difference":
        if is_bf16 and objective.step < BF16_STEP:
            raise ConfigError(
                f"objective.step={objective.step:g}: the difference would be the rounding of train.precision=bf16; set "
                f"objective.step={BF16_STEP}, or train.precision=fp32"
            )
        return
    patch = math.prod(run.backbone.patch_size)
    tokens = max(
        run.codec.latent_frames(one.scale.frames) * math.prod(one.latent_size(1)) // patch
        for one, _ in run.in_buckets()
    )
    reasons = {
        "trainer.compile=true: compiled blocks drop it without an error": bool(trainer.compile),
        f"trainer.context={trainer.context}: the exchange of tokens has none": trainer.context > 1,
        f"trainer.attention={trainer.attention}: the kernel has none": trainer.attention != "sdpa",
        f"attention={run.config.choices['attention']}: FlexAttention has none": (
            run.attention is not None and trainer.accelerator == "gpu"
        ),
        f"plain attention stores {tokens:,}^2 scores for each head": (
            tokens > PLAIN_TOKENS and trainer.accelerator == "gpu"
        ),
    }
    for reason, applies in reasons.items():
        if applies:
            raise ConfigError(
                f"objective.derivative=exact: needs a forward-mode derivative; {reason}; set "
                f"objective.derivative=difference{f' objective.step={BF16_STEP}' if is_bf16 else ''}"
            )
