"""Train a run to weights in `outputs/train/<signature>/`, resumable and only once: `pw train`.

Begin with `loop`. `preflight` has the checks before the start, `record` the files of a training, `batches` the data and
the replay of a loss that is not finite, `export` a folder for diffusers, `start` a start to ship.
"""
