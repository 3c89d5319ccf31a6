"""diffusers' sampling of Wan: its solver UniPC behind our solver interface, and its whole pipeline, to time it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pw.io.lazy import Tensor, torch
from pw.method.path import Velocity
from pw.method.schedule import Schedule


@dataclass(frozen=True)
class UniPC:
    """Multistep predictor-corrector of the given order (1 to 3).

    When to use: on a flow model, whose ODE it solves in fewer steps than Euler. Not on a shortcut model: its velocities
    are means over a step and must not be extrapolated.
    """

    order: int

    def __post_init__(self) -> None:
        if not 1 <= self.order <= 3:
            raise ValueError(f"solver.order={self.order}: 1, 2 or 3")

    def __call__(self, velocity: Velocity, noise: Tensor, grid: Tensor, strides: Tensor, schedule: Schedule) -> Tensor:
        """noise [B, C, F, h, w], grid [n + 1], strides [n] -> data of noise's shape."""
        from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

        scheduler = UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, solver_order=self.order
        )
        scheduler.set_timesteps(sigmas=schedule.sigma(grid[:-1]).numpy())
        scheduler.set_begin_index(0)  # else it looks steps up by whole timestep, which is ambiguous on a fine grid
        state = noise
        full = lambda value: torch.full((len(noise),), value, dtype=torch.float64, device=noise.device)  # noqa: E731
        for timestep, stride, label in zip(grid[:-1].tolist(), strides.tolist(), scheduler.timesteps, strict=True):
            v = velocity(state, full(timestep), full(stride))
            state = scheduler.step(v, label, state, return_dict=False)[0]
        return state


def stock_steps(
    dit: Any, latent: Tensor, text: Tensor, shift: float, steps: int, total: int, after_step: Callable[[float], None]
) -> list[float]:
    """Seconds of each of the first `steps` of `total` denoising steps as Wan2.2-TI2V-5B is published.

    Guidance by two forwards a step, timesteps per token, UniPC.
    latent      initial noise [1, C, F', h, w] on the transformer's device
    text        [1, tokens, D], for both branches
    after_step  called after each step with its seconds
    """
    from diffusers.pipelines.wan.pipeline_wan import WanPipeline
    from diffusers.schedulers.scheduling_unipc_multistep import UniPCMultistepScheduler

    scheduler: Any = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=shift
    )
    parts: dict[str, Any] = dict.fromkeys(("tokenizer", "text_encoder", "vae"))
    pipe: Any = WanPipeline(**parts, transformer=dit, scheduler=scheduler, expand_timesteps=True)
    pipe.set_progress_bar_config(disable=True)
    _, _, frames, rows, columns = latent.shape
    seconds: list[float] = []
    start = time.perf_counter()

    def on_step_end(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        nonlocal start
        synchronize(latent.device)
        seconds.append(time.perf_counter() - start)
        after_step(seconds[-1])
        pipe._interrupt = len(seconds) >= steps
        start = time.perf_counter()
        return tensors

    synchronize(latent.device)
    pipe(
        prompt_embeds=text.to(dit.dtype),
        negative_prompt_embeds=text.to(dit.dtype),
        height=rows * pipe.vae_scale_factor_spatial,
        width=columns * pipe.vae_scale_factor_spatial,
        num_frames=(frames - 1) * pipe.vae_scale_factor_temporal + 1,
        num_inference_steps=total,
        guidance_scale=5.0,
        latents=latent,
        output_type="latent",
        callback_on_step_end=on_step_end,
    )
    return seconds


def synchronize(device: torch.device) -> None:
    """Wait until the GPU's queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
