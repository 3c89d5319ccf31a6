"""diffusers' `WanPipeline` around a transformer of ours, to be timed beside it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def stock_steps(
    dit: Any,
    latent: Tensor,
    text: Tensor,
    shift: float,
    steps: int,
    of: int,
    after_step: Callable[[float], None] | None = None,
) -> tuple[list[float], Tensor]:
    """Seconds of each of the first `steps` of `of` denoising steps with guidance, as Wan2.2-TI2V-5B is published.

    Timesteps per token, two forwards a step, UniPC.
    latent  initial noise [1, C, F', h, w] on the transformer's device; text [1, tokens, D], both branches'
    after_step  called after each step with its seconds

    Returns the seconds and the state after the last of them.
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
    began = time.perf_counter()
    states = []

    def after(pipe: Any, index: int, timestep: Any, found: dict[str, Any]) -> dict[str, Any]:
        nonlocal began
        synchronize(latent.device)
        seconds.append(time.perf_counter() - began)
        states.append(found["latents"])
        if after_step is not None:
            after_step(seconds[-1])
        pipe._interrupt = len(seconds) >= steps
        began = time.perf_counter()
        return found

    synchronize(latent.device)
    pipe(
        prompt_embeds=text.to(dit.dtype),
        negative_prompt_embeds=text.to(dit.dtype),
        height=rows * pipe.vae_scale_factor_spatial,
        width=columns * pipe.vae_scale_factor_spatial,
        num_frames=(frames - 1) * pipe.vae_scale_factor_temporal + 1,
        num_inference_steps=of,
        guidance_scale=5.0,
        latents=latent,
        output_type="latent",
        callback_on_step_end=after,
    )
    return seconds, states[-1]


def synchronize(device: torch.device) -> None:
    """Wait until the GPU's queued work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
