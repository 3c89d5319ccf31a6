"""Fig. 5: does the anchor help against fine-tuning at high resolution directly?

Claim     With the same data, updates and start, the model with an anchor is nearer to real clips than the one without.
Refuted   if the arm with the injector is worse in psd or swd.
Verdict   (tiny, 5 seeds) holds 1, not resolved 1. psd 2.39 -> 1.92 dB favours the anchor, barely (p 0.048); swd does,
          too, unresolved. Clips of 24 px have little layout to lose: at this scale direct fine-tuning does not
          collapse.
"""

from experiments import DETAIL, Ablation, better

ABLATION = Ablation(
    fixed="stage=hires start=base train.updates=400 optimizer.lr=1e-3 optimizer.final_lr=0.1",
    varies=("injector",),
    arms={"direct": "injector=none", "anchored": "injector=gated"},
    ceiling="anchored",
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(
        better("anchored", "direct", "with an anchor psd is better"),
        better("anchored", "direct", "with an anchor swd is better", metric="swd"),
    ),
)
