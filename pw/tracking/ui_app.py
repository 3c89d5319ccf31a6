"""MLflow's own server application, opened on the latest table and without the assistant pane.

`pw mlflow` runs it by MLflow's plug-in `--app-name pixelwizard` (`plugin/`). The assistant would start coding
agents and a shell on this machine. `PAGE` in the environment is the part of the first page's address after `#`.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mlflow.server import app as flask_app
from mlflow.server.fastapi_app import app as server

PAGE = "PW_MLFLOW_PAGE"
ASSISTANT = "/ajax-api/3.0/mlflow/assistant"
# what the page reads of a visitor's earlier choices; these stand until there are some
CHOICES = {
    "mlflow.assistant.fab.autoOpenedOnFirstLoad_v1": "true",
    "mlflow.workflowType_v1": '"machine_learning"',
}
SCRIPT = """<script>
for (const [key, value] of Object.entries(%s)) if (localStorage.getItem(key) === null) localStorage.setItem(key, value);
if (["", "#", "#/"].includes(location.hash)) location.replace("#" + %s);
</script><style>[data-assistant-ui] { display: none !important; }</style>"""


def opening_page(html: str, page: str) -> str:
    """MLflow's index.html with the script that says where it begins, and how on a first visit."""
    script = SCRIPT % tuple(json.dumps(value).replace("<", "\\u003c") for value in (CHOICES, page))
    return html.replace("<head>", f"<head>{script}", 1)


def app() -> Any:
    """The ASGI application, as MLflow asks a plug-in for it."""
    return serve


async def serve(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Answer one request."""
    from starlette.responses import HTMLResponse, PlainTextResponse

    path = scope.get("path", "")
    if scope["type"] == "http" and path == "/" and (page := os.environ.get(PAGE)):
        html = Path(str(flask_app.static_folder), "index.html").read_text(encoding="utf-8")
        await HTMLResponse(opening_page(html, page))(scope, receive, send)
    elif path.startswith(ASSISTANT):
        await PlainTextResponse("the assistant is off", 404)(scope, receive, send)
    else:
        await server(scope, receive, send)
