"""Where the paper and the authors' code differ: which choices matter?

Claim     The differences (loss normalisation, turns, flow weight, gate) are details: no row differs from
          the row above.
Refuted   if any row differs from the row above by more than the paired 95 % interval.
Verdict   not run yet
"""

from experiments import Ablation

PAPER = "turns=alternate objective.flow_weight=uniform target.halves=equal"
BATCH = "weighting.normalise=batch"
BERNOULLI = "turns=bernoulli objective.flow_weight=uniform target.halves=equal"

# Each row changes one thing of the row above, from the paper's words to the authors' code (method.md 2-3).
ABLATION = Ablation(
    fixed="stage=hires",
    varies=("weighting.normalise", "turns", "objective.flow_weight", "target.halves", "optimizer.betas", "injector"),
    arms={
        "suite": "",
        "paper": f"{PAPER} weighting.normalise=none",
        "batch_mean": f"{PAPER} {BATCH}",
        "bernoulli": f"{BERNOULLI} {BATCH}",
        "bell": f"turns=bernoulli objective.flow_weight=bell target.halves=equal {BATCH}",
        "betas": f"turns=bernoulli objective.flow_weight=bell target.halves=equal {BATCH} optimizer.betas=[0.0,0.999]",
        "release": (
            f"turns=bernoulli objective.flow_weight=bell target.halves=equal {BATCH} optimizer.betas=[0.0,0.999] "
            "injector=gated_channelwise"
        ),
    },
)
