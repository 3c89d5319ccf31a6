"""The notebooks as they are committed, with outputs. 3_runs is run where an ablation has run (test_ablation.py)."""

from __future__ import annotations

import ast
import base64
import copy
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from importlib import metadata
from io import BytesIO
from pathlib import Path
from typing import Any

import nbformat
import psutil
import pytest
from PIL import Image

from experiments.engine.notebooks_write import MAX_WIDTH, executed, main, sources_hash
from pw.io.arguments import ConfigError
from pw.io.paths import ROOT

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MAX_BYTES = 600_000
MAX_LINES = 15
OF_A_MACHINE = r"(?<![\w.:/~])(/(home|root|Users|tmp|var|work|usr|opt|mnt)/|[A-Z]:\\)|0x[0-9a-f]{6}"
VERSION = r"\b(torch|numpy|scipy|matplotlib|lightning|mlflow|diffusers|pixelwizard)[ =/-]{1,2}v?(\d+\.\d+(?:\.\d+)?)"
by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def texts(notebook: Any) -> list[dict[str, str]]:
    """Of each output, what it shows as text, by its kind."""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    shown = [{"stream": output.get("text", ""), **output.get("data", {})} for output in outputs]
    return [{kind: text for kind, text in of_one.items() if text and kind != "image/png"} for of_one in shown]


def is_current(notebook: Any) -> bool:
    return notebook.metadata.get("sources_hash") == sources_hash(notebook)


def test_there_are_three() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["1_method", "2_tables", "3_runs"]


@by_name
def test_outputs_are_of_the_cells(path: Path) -> None:
    assert is_current(read(path)), f"{path.name}: a cell was edited; `make notebooks-write` makes its outputs again"


def test_a_cell_that_is_edited_is_noticed() -> None:
    notebook = read(NOTEBOOKS[0])
    edited = copy.deepcopy(notebook)
    code_cells(edited)[-1].source += "\n"
    assert (is_current(notebook), is_current(edited)) == (True, False)


@by_name
def test_every_cell_ran_once_in_order(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert any(cell.outputs for cell in cells)


@by_name
def test_outputs_have_no_error_no_place_and_no_old_version(path: Path) -> None:
    notebook = read(path)
    for output in (output for cell in code_cells(notebook) for output in cell.outputs):
        assert output.output_type in ("execute_result", "display_data", "stream")
        assert output.get("name", "stdout") == "stdout"
    text = "\n".join(text for shown in texts(notebook) for text in shown.values())
    assert re.search(OF_A_MACHINE, text) is None
    for package, version in re.findall(VERSION, text):
        assert metadata.version(package).startswith(version)
    assert notebook.metadata.language_info == {"name": "python"}


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in NOTEBOOKS) < MAX_BYTES


@by_name
def test_they_are_thin(path: Path) -> None:
    """Load, plot, conclude: what is worth a longer function belongs into the packages."""
    for cell in code_cells(read(path)):
        assert len(cell.source.splitlines()) <= MAX_LINES
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno <= 5


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS[:2], ids=lambda path: path.stem)
def test_what_the_suite_holds_is_shown_as_it_is(path: Path, tmp_path: Path) -> None:
    assert texts(executed(path, tmp_path)) == texts(read(path)), "`make notebooks-write` makes the outputs again"


def notebook_of(path: Path, *sources: str) -> Path:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
def test_what_is_kept_is_small_and_names_no_folder(tmp_path: Path) -> None:
    place = "import os, pw\nprint(os.environ['PW_OUTPUTS'] + '/ansc', pw.__file__)"
    picture = "import matplotlib.pyplot as plt\nfigure, axes = plt.subplots(figsize=(40, 4))\naxes.plot([0, 1]);"
    notebook = executed(notebook_of(tmp_path / "mine.ipynb", place, picture), tmp_path / "my outputs")
    assert texts(notebook) == [{"stream": "outputs/ansc ./pw/__init__.py\n"}, {"text/plain": "a picture"}]
    image = Image.open(BytesIO(base64.b64decode(notebook.cells[1].outputs[0].data["image/png"])))
    assert (image.width, image.info) == (MAX_WIDTH, {})


@pytest.mark.slow
def test_a_cell_that_fails_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^mine\.ipynb: a cell failed: ZeroDivisionError: division by zero$"):
        executed(notebook_of(tmp_path / "mine.ipynb", "1 / 0"), tmp_path)


def test_without_a_table_nothing_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = [path.read_bytes() for path in NOTEBOOKS]
    assert main([f"outputs={tmp_path}"]) == 2
    assert "has no table yet; `make ablation name=ansc` makes it" in capsys.readouterr().err
    assert [path.read_bytes() for path in NOTEBOOKS] == before


HANGING = """
import asyncio, os, signal
from experiments.engine.notebooks_write import until_stopped
async def work():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        print("is not interrupted", flush=True)
        await asyncio.Event().wait()
    finally:
        print("cleans up", flush=True)
        await asyncio.Event().wait()
until_stopped(work(), lambda: print("ended", flush=True), seconds=0.5)
"""


def test_a_signal_interrupts_no_line_of_a_notebook_and_waits_for_no_cleanup_that_hangs() -> None:
    command = [sys.executable, "-c", HANGING]
    result = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.stdout.splitlines() == ["is not interrupted", "ended", "cleans up", "ended"], result.stderr
    assert (result.returncode, result.stderr) == (128 + signal.SIGTERM, "")


@pytest.mark.slow
def test_a_signal_ends_it_in_one_line_with_its_kernel() -> None:
    before = NOTEBOOKS[0].read_bytes()
    command = [sys.executable, "-m", "pw", "notebooks-write", "name=1_method"]
    kernels: list[psutil.Process] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            while not (kernels := psutil.Process(process.pid).children()):  # it takes seconds to its last cell
                assert process.poll() is None
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            output = process.communicate(timeout=300)[0]
        finally:  # a kernel that stays would keep the pipe open
            for left in [process, *kernels]:
                with suppress(psutil.NoSuchProcess):
                    left.kill()
    assert output == "stopped by SIGTERM; a notebook is written when all of its cells have run\n"
    assert process.returncode == 128 + signal.SIGTERM
    assert not psutil.wait_procs(kernels, timeout=60)[1]
    assert NOTEBOOKS[0].read_bytes() == before
