"""A run -> trained weights in `outputs/train/<signature>/`, resumable and done once: `pw train`.

Begin with `loop`. `preflight` checks before the start, `checkpoint` and `record` keep the state, `export` writes a
folder for diffusers, `replay` recomputes a loss that was not finite.
"""
