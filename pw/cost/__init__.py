"""FLOPs, memory and time of a run, computed from shapes before anything is loaded: `pw plan` and preflight checks.

Begin with `planner`. `flops`, `memory` and `parameters` count, `verdicts` says what fits and `nearest` what would.
"""
