"""PixelWizard: a low-resolution anchor fixes structure, a second stage paints 2K/4K detail under it in four steps.

`pw.method` is sec. 3.4 of the paper (schedule, step sampler, weighting, target, objective, solver), `pw.nn` the
network (Wan2.2's transformer with the anchor-guided injector of sec. 3.3), `pw.data` the clips, `pw.stages` the two
LightningModules. `pw.run.build` assembles one run from `conf/`, `pw.train.loop` and `pw.sample.evaluate` carry it out.
"""
