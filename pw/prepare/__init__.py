"""Videos -> shards of short clips (`pw data`) -> shards of latents (`pw latents`), which `pw.data` reads.

Begin with `ingest`, then `encode`; `ultravideo` downloads the data set of the paper.
"""
