"""Videos -> shards of short clips (`pw data`) -> shards of latents (`pw latents`), which `pw.data` reads.

Begin with `ingest`, then `encode`; `ultravideo` fetches the paper's data set.
"""
