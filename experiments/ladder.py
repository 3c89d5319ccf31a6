"""Which set of (timestep, stride) should be trained? (beyond the paper)

Claim     The paper's set is not closed; sets that contain what their own targets and the inference grid ask
          for (closed, aligned) are better, most at 2 steps.
Refuted   if both closed and aligned are worse than the paper's set at 2 or 4 steps.
Verdict   (tiny, 5 seeds) holds 2. By aligned, at every number of steps (psd 2.07 -> 0.98 dB at 2, 0.67 -> 0.51 at 4);
          closing the ladder alone is worse (2.45, 0.83), and so is chain. Adding the start helps at 2 to 5 steps
          (1.34, 0.59 at 2 and 4). The best at 2 and 3 steps is full_range (0.82, 0.57), which needs no set at all: a
          hint that it is the first, noisiest steps that must be trained.
"""

from experiments import DETAIL, Ablation, any_of, better

ABLATION = Ablation(
    fixed="stage=hires",
    varies=("step_sampler",),
    arms={
        "paper": "step_sampler=exponential_index",
        "paper_and_start": "step_sampler=exponential_index step_sampler.include_start=true",
        "closed": "step_sampler=closed",
        "chain": "step_sampler=chain",
        "original": "step_sampler=original",
        "full_range": "step_sampler=full_range",
        "aligned": "step_sampler=aligned",
    },
    across=("sampling.num_steps", (2, 3, 4, 5)),
    versus="first",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=tuple(
        any_of(
            f"at {n} steps closed or aligned beats the paper's set",
            *(better(f"{arm}@{n}", f"paper@{n}") for arm in ("closed", "aligned")),
        )
        for n in (2, 4)
    ),
)
