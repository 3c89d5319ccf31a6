"""Table 9.3, Fig. 6: what does noise-span aligned shortcut training add?

Claim     At 4 steps each ingredient helps: shortcut training as it was first done, the paper's starts and candidates
          (Eq. 5), the bias to long strides (Eq. 6), and noise-span calibration (Eqs. 7-8).
Refuted   if a row is worse than the row above it.
Verdict   (tiny, 5 seeds) holds 5, not resolved 1. Shortcut training as it was first done takes three fifths of the
          way to the 48-step ceiling (psd 1.75 -> 1.03 dB, ceiling 0.57); the paper's starts and candidates alone add
          nothing that is shown (1.02), its bias does (0.81), and calibration a little more (0.77). In the other
          detail metrics only the first step is shown. The order is the paper's.
"""

from experiments import Ablation, Probe, better

ABLATION = Ablation(
    paper="table_9_3",
    fixed="stage=hires sampling.num_steps=4",
    varies=("objective", "step_sampler", "weighting"),
    arms={
        "baseline": "objective=flow",
        "original": "objective=shortcut step_sampler=original weighting=uniform",
        # no row in the paper: its candidate set alone, before the bias
        "uniform": "objective=shortcut step_sampler=uniform weighting=uniform",
        "exponential": "objective=shortcut step_sampler=exponential_index weighting=uniform",
        "full": "objective=shortcut step_sampler=exponential_index weighting=delta_sigma",
    },
    claims=(
        better("original", "baseline", "shortcut training as it was first done beats plain flow matching"),
        better("uniform", "original", "the paper's starts and candidates beat the original sampler's"),
        better("exponential", "uniform", "the bias to long strides adds to the candidates"),
        better("full", "exponential", "noise-span calibration adds to the bias"),
        better("exponential", "original", "exponential index-biased sampling as a whole, the paper's second step"),
        better("full", "baseline", "all of it beats the baseline"),
    ),
    probe=Probe("sampling.shift", (1.0, 2.0, 3.0, 5.0), arms=("baseline",)),
)
