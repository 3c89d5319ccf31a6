"""Videos on disk -> scores, cached by the content of the video, with the contract of the measurement.

`score` (`pw score`) scores a folder of any system's videos, `clips` those of an ablation's run. Begin with `score`.
"""
