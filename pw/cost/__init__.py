"""FLOPs, memory and time of a run, computed from shapes before anything is loaded: `pw plan` and preflight checks.

Begin with `planner`. `counts` has the formulas, `verdicts` checks what fits a GPU and suggests changes.
"""
