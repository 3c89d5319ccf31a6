"""Measure videos on disk, compare them, print tables. Videos of any system are read alike: from a folder.

    metrics/    the registry (one row per metric), and a module per family of metrics
    measure/    `pw score`: a folder of videos -> scores.csv and its protocol; the clips of an ablation's run; weights
    stats/      intervals, paired differences, verdicts: over seeds (comparison), over prompts (paired)
    report/     tables as Markdown, TeX, HTML and on the terminal, plots, contact sheets; `pw table`
    paper/      what the paper printed; `pw lint-paper` says what of it does not add up
    systems/    the paper's systems: cards, and what makes their videos; `pw system`
    speed/      `pw bench`

No metric imports a model that made the videos, and nothing here but `speed/` imports more of pw than `pw.io` and
`pw.run.code`; `systems/` starts other programs and diffusers' pipelines.
"""
