"""Fig. 5: does the anchor help against fine-tuning at high resolution directly?

Claim     With the same data, updates and start, the model with an anchor beats the one without, above all
          in structure.
Refuted   if the arm with the injector is no better in structure (anchor_fidelity) or in detail (psd, swd).
Verdict   not run yet
"""

from experiments import Ablation

ABLATION = Ablation(
    fixed="stage=hires start=base train.updates=1200 optimizer.lr=1e-3 optimizer.final_lr=0.1",
    varies=("injector",),
    arms={"direct": "injector=none", "anchored": "injector=gated"},
    primary="anchor_fidelity",
    ceiling="anchored",
)
