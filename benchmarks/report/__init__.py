"""Scores -> tables as Markdown, TeX, HTML, CSV and JSON, plots and contact sheets.

`write` writes an ablation's table, `paper_tables` (`pw table`) the paper's with ours beside it. Begin with `render`,
which says what a table holds before any markup.
"""
