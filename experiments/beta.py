"""Eq. 6: how strongly should sampling be biased to long strides?

Claim     A bias towards long strides helps few-step sampling, beta = 0.7 more than none.
Refuted   if beta = 0.7 is worse than beta = 0 at 4 steps.
Verdict   (tiny, 5 seeds) holds 1. psd 0.90, 0.81, 0.77, 0.75 dB at beta 0, 0.35, 0.7, 1.4: two thirds of the gain is
          there at 0.35, and more bias than the paper's does no harm.
"""

from experiments import DETAIL, Ablation, better

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=4 step_sampler=exponential_index",
    varies=("step_sampler.beta",),
    arms={f"beta_{beta}": f"step_sampler.beta={beta}" for beta in (0.0, 0.35, 0.7, 1.4)},
    versus="first",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(better("beta_0.7", "beta_0.0", "a bias of 0.7 beats none at 4 steps"),),
)
