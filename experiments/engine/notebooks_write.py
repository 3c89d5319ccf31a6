"""`pw notebooks-write`: run the notebooks of a checkout, and keep what they show in them.

Begin with `executed`. `sources_hash` in a notebook's metadata says of which cells the outputs are (D110).
"""

from __future__ import annotations

import asyncio
import atexit
import base64
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from experiments.engine.read import runs
from pw.io.arguments import Command, ConfigError, option
from pw.io.files import digest, write_atomically
from pw.io.paths import IS_CHECKOUT, OUTPUTS, ROOT
from pw.parallel.signals import Stopped, handle_stop_signals

if TYPE_CHECKING:
    from nbclient import NotebookClient

FOLDER = ROOT / "notebooks"
OF_AN_OUTCOME = "3_runs"  # the others show what the suite itself holds, the same everywhere
MAX_WIDTH = 1000  # pixels
COLOURS = 128
MAX_SECONDS = 600  # of a cell
STOP_SECONDS = 10  # that a stopped notebook may take to clean up


def sources_hash(notebook: Any) -> str:
    """Of the sources of all code cells."""
    return digest(["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"])


def executed(path: Path, outputs: Path) -> Any:
    """A notebook with its outputs as they are kept: small, and without what differs by machine.

    outputs: the folder that it reads. Raises ConfigError for a cell that fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        timeout=MAX_SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(FOLDER)}},
    )
    own = {"PYTHONPATH": str(ROOT), "PW_OUTPUTS": str(outputs)}
    own["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
    execution = client.async_execute(env=os.environ | own, stderr=subprocess.DEVNULL)
    try:
        until_stopped(execution, lambda: _end_kernel(client))
    except CellExecutionError as error:
        raise ConfigError(f"{path.name}: a cell failed: {error.ename}: {error.evalue}") from error
    except RuntimeError as error:
        raise ConfigError(f"{path.name}: its kernel ended: {error}") from error
    finally:
        atexit.unregister(client._cleanup_kernel)  # it is left where a kernel was starting, and waits for that one
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            _tidy(output, outputs)
    notebook.metadata["language_info"] = {"name": "python"}  # without the version of Python
    notebook.metadata["sources_hash"] = sources_hash(notebook)
    return notebook


def until_stopped(work: Coroutine[Any, Any, Any], end: Callable[[], None], seconds: float = STOP_SECONDS) -> None:
    """Run `work` to its end. After a signal to stop `end` is called, `work` has `seconds` to clean up, and Stopped is
    raised.

    Nothing is raised inside `work`: a signal can come in the middle of what asyncio, zmq or `subprocess` must finish,
    such as the release of a lock, for which nbclient's cleanup would then wait for ever.
    """
    received: list[int] = []
    loop = _Loop()

    async def main() -> None:
        task, is_stopped = asyncio.ensure_future(work), asyncio.Event()

        def stop(number: int, frame: Any) -> None:
            received.append(number)
            loop.call_soon_threadsafe(is_stopped.set)

        with handle_stop_signals(stop):
            stopping = asyncio.ensure_future(is_stopped.wait())
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            stopping.cancel()
            if received:
                end()
                task.cancel()
                await asyncio.wait({task}, timeout=seconds)
                end()  # what began before it was cancelled
        if not received:
            await task

    try:
        loop.run_until_complete(main())
    finally:
        loop.close()
    if received:
        raise Stopped(received[0])


def _end_kernel(client: NotebookClient) -> None:
    """Kill the kernel's processes, a group of their own."""
    process = getattr(getattr(client.km, "provisioner", None), "process", None)
    if process is not None and process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


class _Loop(asyncio.SelectorEventLoop):
    """Without nbclient's handlers of signals, which end the kernel under its own feet; it heeds this error."""

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        raise RuntimeError("signals stop the command, and it the kernel")

    def call_exception_handler(self, context: Any) -> None:
        """Of a kernel that was ended; what fails otherwise is raised."""


def _tidy(output: Any, outputs: Path) -> None:
    """Make pictures small, and paths relative."""
    if png := output.get("data", {}).pop("image/png", None):
        output.data = {"image/png": _small(png), "text/plain": "a picture"}
        output.metadata = {}
    for holder, key in [(output, "text"), *((output.get("data", {}), kind) for kind in output.get("data", {}))]:
        if isinstance(text := holder.get(key), str) and key != "image/png":
            holder[key] = text.replace(str(outputs), "outputs").replace(str(ROOT), ".")


def _small(png: str) -> str:
    """A picture in base64 with fewer colours, not too wide, without its metadata."""
    from PIL import Image

    image = Image.open(BytesIO(base64.b64decode(png))).convert("RGB")
    if image.width > MAX_WIDTH:
        image = image.resize((MAX_WIDTH, round(image.height * MAX_WIDTH / image.width)), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "png", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


@dataclass(frozen=True)
class NotebookOptions:
    """The options of `pw notebooks-write`."""

    name: Literal["1_method", "2_tables", "3_runs"] | None = option(None, "only this notebook")
    outputs: Path = option(OUTPUTS, "with the table of `make ablation name=ansc`, which 3_runs shows")


def run(options: NotebookOptions) -> int:
    """Write the notebooks; exit status 0. Raises ConfigError."""
    if not IS_CHECKOUT or not FOLDER.is_dir():
        raise ConfigError("notebooks-write: the notebooks are in a checkout of the suite, and this is none")
    outputs = options.outputs.expanduser().resolve()
    paths = [FOLDER / f"{options.name}.ipynb"] if options.name else sorted(FOLDER.glob("*.ipynb"))
    if any(path.stem == OF_AN_OUTCOME for path in paths):
        runs("ansc", outputs)
    import nbformat

    with tempfile.TemporaryDirectory() as nothing:
        for path in paths:
            notebook = executed(path, outputs if path.stem == OF_AN_OUTCOME else Path(nothing).resolve())
            write_atomically(path, nbformat.writes(notebook) + "\n")
            print(f"{path.relative_to(ROOT)}: {path.stat().st_size // 1000} kB", flush=True)
    return 0


main = Command(NotebookOptions, run, resume_hint="a notebook is written when all of its cells have run")
