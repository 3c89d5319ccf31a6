"""Train a run to weights in `outputs/train/<signature>/`, resumable and only once: `pw train`.

Begin with `loop`. `preflight` has the checks before the start, `record` the files of a training, `batches` the data and
the replay of a loss that is not finite, `export` a folder for diffusers, `start` a start to ship.

Checkpoints: `callbacks` says when and which are kept, `record` their names and which is the last, `loop` resumes;
`pw.parallel.strategy` writes and reads them, and `pw.parallel.sharded` those that are split over processes.
"""
