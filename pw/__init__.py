"""PixelWizard: a low-resolution anchor fixes structure, a second stage paints 2K/4K detail under it in four steps.

In the order in which data passes:

    prepare/    videos -> shards -> latents
    data/       what training reads: clips, latents, degradation to anchors
    method/     sec. 3.4 and 7 of the paper, one function for each equation
    nn/         the network: Wan2.2's transformer with the anchor-guided injector (sec. 3.3)
    stages/     both stages as LightningModules
    run/        overrides and conf/ -> a checked run
    train/      a run -> weights
    sample/     a trained run -> evaluation clips, which `benchmarks` scores
    generate/   prompt -> video

and for all of them: `parallel/` (processes), `cost/` (memory and time in advance), `tracking/` (MLflow), `io/` (files).
`cli.py` lists the commands. Begin with `pw.method`, then `pw.run.build`.

The letters that name axes: B batch, C channels, F frames, H W rows and columns (h w on the latent grid), L tokens, D
width, M rows of a table. A *video* is float [B, 3, F, H, W] in [-1, 1]; a *latent* is what the codec makes of it,
[B, C, F, h, w].
"""
