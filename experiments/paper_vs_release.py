"""Where the paper and the authors' code differ: which choices matter?

Claim     The differences (loss normalisation, turns, flow weight, gate, blur of the anchor) are details: no row
          differs from the row above.
Refuted   if any row differs from the row above by more than 10 %.
Verdict   (tiny, 5 seeds) holds 4, refuted 3. Without normalising the loss psd is a little worse (0.77 -> 0.85 dB);
          normalised by the batch's mean it is back; with turns drawn per batch, which give consistency fewer updates,
          it is worse again (0.98). The rest are details, within 10 %: the bell costs 0.05 dB, Adam's betas give 0.08
          back, the gate per channel and the short blur (0.95 -> 0.92) show no difference.
"""

from experiments import DETAIL, Ablation, same

BATCH = "weighting.normalise=batch"
BERNOULLI = f"{BATCH} turns=bernoulli"
BELL = f"{BERNOULLI} objective.flow_weight=bell_batch"
BETAS = f"{BELL} optimizer.betas=[0.0,0.999]"
GATE = f"{BETAS} injector=gated_channelwise"
SAME_START = "start.inherit=[scale,data,codec,backbone,injector.]"  # not the degradation

# Each row changes one thing of the row above, from the paper's words to the authors' code (docs/method.md). Eq. 4's
# 1/2-1/2 is the span-weighted mean in this coordinate, but for snapping; `halves` asks where it is not. Weights divided
# by their mean over the batch are 1 at the authors' batch of one. A kernel of 3 taps at sigma 1 is cut like theirs of
# 7 or 9 at sigma 3.0 to 4.3; the test's anchors are degraded as in training.
ABLATION = Ablation(
    fixed="stage=hires",
    varies=(
        "weighting.normalise",
        "turns",
        "objective.flow_weight",
        "optimizer.betas",
        "injector",
        "degradation.taps",
        "start.inherit",
    ),
    arms={
        "suite": "weighting.normalise=expected",
        "paper": "weighting.normalise=none",
        "batch_mean": BATCH,
        "bernoulli": BERNOULLI,
        "bell": BELL,
        "betas": BETAS,
        "gate": GATE,
        "release": f"{GATE} degradation.taps=[3] {SAME_START}",
    },
    metrics=(*DETAIL, "anchor_fidelity"),
    claims=(
        same("paper", "suite", "without normalising the loss: the same", margin=0.1),
        same("batch_mean", "paper", "normalised by the batch's mean: the same", margin=0.1),
        same("bernoulli", "batch_mean", "turns drawn per batch: the same", margin=0.1),
        same("bell", "bernoulli", "a bell of flow weights: the same", margin=0.1),
        same("betas", "bell", "Adam's betas of the release: the same", margin=0.1),
        same("gate", "betas", "a gate per channel: the same", margin=0.1),
        same("release", "gate", "a short blur of the anchor: the same", margin=0.1),
    ),
)
