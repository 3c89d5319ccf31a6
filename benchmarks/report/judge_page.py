"""The page on which a judge compares clips. Begin with `judge_html`; its data say nothing of what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.report.page import read_asset, template


def judge_html(data: Mapping[str, Any]) -> str:
    """The text of the page. data: what `judge.js` reads

    plan, judge, shown  whose answers they are, and to what; a file of answers names them
    exported            whether answers are kept by the browser and saved as a file, or sent to a server
    pairs               [id, media on the left, media on the right], in order
    media               id -> frames, height, width, fps, and the names of its files
    answers             [id, choice, milliseconds] of those that are there already
    """
    return template("judge.html.jinja").render(
        data=data,
        css=f"{read_asset('page.css')}\n{read_asset('judge.css')}",
        js=f'"use strict";\n{read_asset("player.js")}\n{read_asset("judge.js")}',
    )
