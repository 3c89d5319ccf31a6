"""Does the first stage need 50 steps? (beyond the paper)

Claim     Shortcut training brings the first stage from 50 steps to 4, and what the second stage makes under its anchors
          loses nothing.
Refuted   if they are worse in psd or swd.
Verdict   (tiny, 5 seeds) refuted 2. Anchors in 4 steps cost 0.37 dB (psd 2.27 -> 2.64) and swd, and save 9 s at either
          scale by the plan: the last of the steps to cut, not the first.
"""

from experiments import DETAIL, Ablation, not_worse

FEW_STEPS = '["stage=anchor","objective=shortcut","guidance=off","sampling.num_steps=4"]'

ABLATION = Ablation(
    fixed="stage=hires sampling.num_steps=4",
    varies=("anchors",),
    arms={"steps_50": "anchors=generated", "steps_4": "anchors=few_step"},
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(
        not_worse("steps_4", "steps_50", "psd is as good with 4 steps as with 50", margin=0.1),
        not_worse("steps_4", "steps_50", "swd is as good with 4 steps as with 50", metric="swd", margin=0.1),
    ),
    planned={"steps_50": "", "steps_4": f"anchors=generated anchors.stage.overrides={FEW_STEPS}"},
)
