"""Time and memory of generation, metrics and updates on this machine, compared within one run: `pw bench`.

Each `what=` has a module: `generation`, `metric_speed`, and `updates` (called by `experiments.engine.bench`).
"""
