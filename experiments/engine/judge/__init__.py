"""`pw judge`: people compare clips of two arms without knowing which (`judge_command`).

`vote_plan` draws the pairs of a judge, `vote_files` keeps the answers, `judge_server` and `vote_export` show the pairs,
`vote_report` is what the votes say, for the table and for `report=true`.
"""
