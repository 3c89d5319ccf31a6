"""Tables in Markdown, TeX, HTML, CSV and JSON, plots and contact sheets.

`write` writes the table of an ablation, `paper_tables` (`pw table`) a table of the paper with our measurements. Begin
with `render`, which builds the content of a table without markup.
"""
