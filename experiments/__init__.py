"""The ablations. One file is one table or figure of the paper, or one question beyond it, stated as a claim that can be
refuted: data, no logic. `pw ablation name=ansc` runs one and answers each clause of its claim; `pw ablations` lists
them all. What an ablation file needs is imported from here; what runs it is `experiments.engine`.
"""

from experiments.engine.ablation import DETAIL, SOLUTION, Ablation, Probe, all_of, any_of, better, not_worse, same

__all__ = ["DETAIL", "SOLUTION", "Ablation", "Probe", "all_of", "any_of", "better", "not_worse", "same"]
