"""`pw open ansc.zip`: unpack a shared ablation, say what it is, and show its page."""

from __future__ import annotations

import os
import sys
import webbrowser
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.page import PAGE
from experiments.engine.share.adopted import short_commits
from experiments.engine.share.bundle import MANIFEST, Bundle, meter, open_bundle, summary
from pw.io.arguments import Command, ConfigError, option
from pw.io.console import print_line, printable
from pw.io.files import check_space, check_writable, length, replacing


@dataclass(frozen=True)
class OpenOptions:
    """The options of `pw open`."""

    file: Path | None = option(None, "what `pw share` wrote")
    to: Path | None = option(None, "folder to unpack to; beside the file, with its name, by default")
    browser: bool = option(True, "show the page in a browser, where there is a screen")
    positional: tuple[str, ...] = option((), "the file, instead of file=", key="FILE.zip")


def one_file(file: Path | None, words: tuple[str, ...]) -> Path:
    """The file that a command got. Raises ConfigError."""
    files = [*([] if file is None else [file]), *map(Path, words)]
    if len(files) != 1:
        raise ConfigError(f"{' '.join(map(str, files)) or 'FILE.zip is missing'}: expected one file of `pw share`")
    return files[0].expanduser().absolute()


def run(options: OpenOptions) -> int:
    """Unpack, unless that was done before, and show; exit status 0. Raises ConfigError, OSError."""
    path = one_file(options.file, options.positional)
    folder = (options.to or path.with_suffix("")).absolute()
    with open_bundle(path) as bundle:
        if folder.exists() and not _is_unpacked(bundle, folder):
            raise ConfigError(f"to={folder}: exists and is not what is in {path.name}; to=… chooses another folder")
        if not folder.exists():
            check_writable("to", folder.parent)
            check_space("to", folder.parent, bundle.size, "choose another to=", "for its files")
            with replacing(folder) as partial:
                bundle.unpack([*bundle.members], partial, meter(bundle.size))
                bundle.unpack_manifest(partial)
        page = folder / bundle.manifest["ablation"] / PAGE
        for line in described(bundle.manifest):
            print(printable(line))
    print(page)
    if (
        options.browser
        and page.exists()
        and (sys.platform == "darwin" or {"DISPLAY", "WAYLAND_DISPLAY"} & {*os.environ})
    ):
        if not webbrowser.open(page.as_uri()):
            print_line("no browser could be started; open the page above in one")
    return 0


def described(manifest: Mapping[str, Any]) -> list[str]:
    """What a shared ablation is, in a few lines."""
    seeds = ", ".join(map(str, manifest["seeds"]))
    commits = short_commits(", ".join(manifest["commits"]))
    return [
        f"{manifest['ablation']}: {manifest['title']}",
        *(f"  {line}" for line in manifest["verdict"]),
        f"scale {manifest['scale']}, seeds {seeds}; commit {commits or 'unknown'}",
        summary(manifest["members"]),
        *manifest["adopted"],
    ]


def _is_unpacked(bundle: Bundle, folder: Path) -> bool:
    """Whether a folder was unpacked from this file, and nothing is gone since."""
    manifest = folder / MANIFEST
    is_same = manifest.is_file() and manifest.read_bytes() == bundle.archive.read(MANIFEST)
    return is_same and all(length(folder / name) == entry["size"] for name, entry in bundle.members.items())


main = Command(OpenOptions, run)
