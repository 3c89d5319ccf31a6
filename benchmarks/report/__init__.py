"""Tables in Markdown, TeX, HTML, CSV and JSON, plots and contact sheets.

`write` writes the table of an ablation, `paper_tables` (`pw table`) a table of the paper with our measurements.
`render` builds the content of their cells, `grid` turns cells into Markdown, TeX and HTML.
"""
