"""Table 5, Fig. 7: how many inference steps does one training need?

Claim     Quality rises from 2 to 4 steps and is flat from 4 to 5 (the paper's text; its Table 5 labels do
          not agree with its latencies).
Refuted   if 3 steps are no better than 2, or 5 differ from 4.
Verdict   (tiny, 5 seeds) holds 2, refuted 1. Quality rises from 2 to 4 steps (psd 2.32, 1.07, 0.77 dB) and is not
          flat after them: 5 steps are better still in psd (0.63, where 48 steps with the flow velocity reach 0.69).
"""

from experiments import Ablation, better, same

ABLATION = Ablation(
    paper="table_5",
    fixed="stage=hires",
    varies=("sampling.num_steps",),
    arms={str(n): f"sampling.num_steps={n}" for n in (2, 3, 4, 5)},
    claims=(
        better("3", "2", "3 steps beat 2"),
        better("4", "3", "4 steps beat 3"),
        same("5", "4", "5 steps are as good as 4", margin=0.1),
    ),
)
