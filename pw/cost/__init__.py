"""FLOPs, memory and time of a run, computed from shapes before anything is loaded: `pw plan` and preflight checks.

`planner` is the command. `training_cost` adds up the memory of an update and `generation_cost` that of a video, by the
formulas in `counts`; `verdicts` checks what fits a GPU and suggests changes.
"""
