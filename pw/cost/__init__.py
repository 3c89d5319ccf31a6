"""FLOPs, memory and time of a run, computed from shapes before anything is loaded: `pw plan` and preflight checks.

Begin with `planner`. `counts` counts, `verdicts` says what fits and what would.
"""
