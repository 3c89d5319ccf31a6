"""A run -> trained weights in `outputs/train/<signature>/`, resumable and done once: `pw train`.

Begin with `loop`. `preflight` checks before the start, `record` keeps the state, `batches` reads clips and recomputes a
loss that was not finite, `export` writes a folder for diffusers, `start` a start that is shipped.
"""
