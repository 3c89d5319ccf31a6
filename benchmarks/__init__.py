"""Measure videos on disk, compare arms over seeds, print tables.

    metrics/            the registry (one row per metric) and the weight-free metrics
    score.py            a folder of clips -> scores.csv, scores.json
    contract.py         which scores may stand in one table
    compare.py          seeds x arms -> intervals, paired differences, verdicts
    coverage_study.py   why the intervals are what they are: `python -m benchmarks.coverage_study`
    paper/              what the paper printed
    table.py            what the tables say, before any markup
    report.py           table.{md,tex,html,json,csv} and the terminal
    figures.py          plot.png, contact_sheet.png

Nothing here imports a model: other people's systems come through the same door as ours, a folder of clips.
"""
