"""Texts of results as they are shared: without folders of the sender's machine, and marks that fit them."""

from __future__ import annotations

import html
import json
import posixpath
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

from experiments.engine.share.bundle import digest_of
from pw.io.files import digest
from pw.io.paths import ROOT
from pw.run.compose import PATH_KEYS, value_at


class Portable:
    """Replaces the folders of this machine: those of the suite, the outputs, the user, and what configurations name.

    configs  texts of all config.yaml; of a path that one has, the name of the file or folder stays
    """

    def __init__(self, outputs: Path, configs: Iterable[str]) -> None:
        folders = {str(outputs): "outputs", str(Path.cwd()): ".", str(ROOT): ".", str(Path.home()): "~"}
        for config in configs:
            values = yaml.safe_load(config)
            for path in (Path(str(value_at(values, key) or "")) for key in PATH_KEYS):
                if path.is_absolute():
                    folders |= {str(path): f"./{path.name}", str(path.parent): "."}  # `*.tar` alone is no YAML
        self.outputs = str(outputs)
        self.folders = {k: v for k, v in sorted(folders.items(), key=lambda pair: -len(pair[0])) if k != "/"}

    def text(self, text: str) -> str:
        for folder, name in self.folders.items():
            for written in {folder, html.escape(folder), json.dumps(folder)[1:-1]}:
                text = re.sub(rf"(?<![\w./-]){re.escape(written)}(?![\w-])", lambda _, name=name: name, text)
        return text

    def sealed(self, content: Mapping[str, Any], texts: Mapping[str, bytes] = {}, *, is_ascii: bool = True) -> bytes:
        """A mark (`pw.io.manifest`) or table.json without its checksum -> its text, with one that fits.

        texts: content of files that a mark lists, where it has changed
        """
        files = {name: digest_of(data) for name, data in texts.items()}
        changed = {**content, "files": {**content["files"], **files}} if files else content
        changed = json.loads(self.text(json.dumps(changed)))
        text = json.dumps({**changed, "checksum": digest(changed, 64)}, indent=1, ensure_ascii=is_ascii)
        return f"{text}\n".encode()

    def page(self, text: str, folder: str, members: Collection[str]) -> str:
        """A page without `outputs=` in its commands, and without links to clips that are not among the members."""
        word = html.escape(shlex.quote(f"outputs={self.outputs}")).replace("&#x27;", "&#39;")

        def linked(match: re.Match[str]) -> str:
            target = posixpath.normpath(f"{folder}/{unquote(match[1])}")
            return match[0] if target in members else ""

        return self.text(re.sub(r'"source": "([^"]*)", ', linked, text.replace(f" {word}", "")))
