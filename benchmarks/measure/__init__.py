"""Videos on disk -> scores: each metric over each video once, cached by content, with the contract it was measured by.

`score` (`pw score`) scores a folder of any system's videos, `clips` those of an ablation's run. Begin with `score`.
"""
