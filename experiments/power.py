"""Eq. 8: how much should the noise span weigh?

Claim     Weighting by the span's root helps: p = 0.5 beats p = 0.
Refuted   if p = 0.5 is worse than p = 0 at 4 steps.
Verdict   (tiny, 5 seeds) holds 1. psd falls with the power: 0.81, 0.78, 0.77, 0.75 dB at p = 0, 0.25, 0.5, 1; twice
          the paper's is no worse.
"""

from experiments import DETAIL, Ablation, better

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=4",
    varies=("weighting", "weighting.p"),
    # p = 0 is weighting=uniform, and so the run that `ansc` calls exponential
    arms={"p_0": "weighting=uniform", **{f"p_{p}": f"weighting.p={p}" for p in (0.25, 0.5, 1.0)}},
    versus="first",
    curve=("weighting.p", 0.0),
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(better("p_0.5", "p_0", "p = 0.5 beats p = 0 at 4 steps"),),
)
