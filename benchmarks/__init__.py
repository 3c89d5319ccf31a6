"""Measure videos on disk, compare them, print tables. Videos of any system come through the same door: a folder.

    metrics/            the registry (one row per metric), and a module per family of metrics
    score.py            `make score`: a folder of videos -> scores.csv and its protocol; measure.py does it
    streaming.py        one decode for all metrics, in bounded memory
    cache.py            what was measured is not measured again
    weights.py          `make weights what=metrics`
    workers/            VBench's process, in an environment of its own
    paper/              what the paper printed; lint.py says what of it does not add up
    tables.py           `make table`: the paper's tables with ours beside them
    vbench_totals.py    VBench's normalisation and totals
    systems/            the paper's systems: cards, and what makes their videos
    bootstrap.py        means over videos; paired.py: two folders of videos
    bench.py            `make bench what=metrics`

    clips.py            the clips of an ablation's run -> scores.{csv,json}
    contract.py         which scores may stand in one table
    compare.py          seeds x arms -> intervals, paired differences, verdicts
    coverage_study.py   why the intervals are what they are: `python -m benchmarks.stats.interval_coverage`
    table.py            what an ablation's tables say, before any markup
    report.py           grids as Markdown, TeX, HTML and on the terminal; an ablation's files
    figures.py          plot.png; dots.py: the same of the primary metric, in the terminal
    contact_sheet.py    contact_sheet.png

No metric imports a model that made the videos, and nothing here imports pw but `pw.io.video` and `pw.io.host`;
`systems/` starts other programs and diffusers' pipelines, in its own files.
"""
