"""Revisions of git, each checked out in a folder of the outputs. Begin with `revisions`.

`outputs/code/<commit>/` is a detached worktree of the suite's repository. It is made once and kept; branches and the
user's own checkout are not touched, and no hook runs.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pw.io.arguments import ConfigError, did_you_mean
from pw.io.files import check_writable, remove
from pw.io.paths import IS_CHECKOUT, ROOT, commit_of, run_git

CURRENT = "current"
CHECKOUT_SECONDS = 600.0


@dataclass(frozen=True)
class Revision:
    """A version of the code. name: as typed; folder: its checkout, for `current` the user's own, with its changes;
    server: the socket of a process that makes runs (`revision_run.servers`), else each run has a process of its own."""

    name: str
    commit: str
    subject: str
    folder: Path
    server: str = ""

    @property
    def is_current(self) -> bool:
        return self.folder == ROOT

    def __str__(self) -> str:
        changes = " and what is not committed" if self.is_current and commit_of(ROOT)[1] else ""
        return f"code {self.name} is {self.commit[:8]} ({self.subject}){changes}"

    @property
    def checkout_command(self) -> str:
        """The command that makes `folder` again; empty for the user's own checkout."""
        folder = shlex.quote(str(self.folder))
        add = f"git worktree add --force --detach {folder} {self.commit}"
        return "" if self.is_current else f"[ -d {folder} ] || {add}"


def revisions(names: Sequence[str], outputs: Path) -> list[Revision]:
    """Find the commits of revisions, and check each out. Raises ConfigError, before anything is written."""
    request = f"code={','.join(names)}"
    try:
        is_repository = IS_CHECKOUT and not run_git(ROOT, "rev-parse", "--show-cdup")
    except OSError as error:
        raise ConfigError(f"{request}: git is not installed here, and revisions are of git") from error
    except subprocess.CalledProcessError:
        is_repository = False
    if not is_repository:
        raise ConfigError(f"{request}: {ROOT} is no clone of the suite's git repository, so there are no revisions")
    commits = [_commit(name) for name in names]
    if set(names) != {CURRENT}:
        check_writable("outputs", outputs / "code")
    return [
        Revision(name, commit, run_git(ROOT, "log", "-1", "--format=%s", commit), _folder(name, commit, outputs))
        for name, commit in zip(names, commits, strict=True)
    ]


def changed_lines(a: Revision, b: Revision) -> str:
    """How much differs from `a` to `b`: `3 files changed, 12 insertions(+), 4 deletions(-)`."""
    commits = [a.commit] if b.is_current else ["-R", b.commit] if a.is_current else [a.commit, b.commit]
    text = run_git(ROOT, "diff", "--shortstat", *commits) or "no file differs"
    lock = run_git(ROOT, "diff", "--name-only", *commits, "--", "requirements/dev.lock")
    return f"{text}; also {lock}, but both run in the environment of this call" if lock else text


def _commit(name: str) -> str:
    try:
        commit = "HEAD" if name == CURRENT else name
        return run_git(ROOT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{commit}^{{commit}}")
    except subprocess.CalledProcessError as error:
        names = run_git(ROOT, "for-each-ref", "--format=%(refname:short)").split()
        near = next((n for n in names if n.endswith(f"/{name}")), None)
        hint = f"did you mean {near}? " if near else did_you_mean(name, names)
        is_shallow = run_git(ROOT, "rev-parse", "--is-shallow-repository") == "true"
        remedy = "; this clone is shallow, `git fetch --unshallow` brings older ones" if is_shallow else ""
        raise ConfigError(
            f"code={name}: no such revision; {hint}expected {CURRENT}, a branch, a tag or a commit{remedy}"
        ) from error


def _folder(name: str, commit: str, outputs: Path) -> Path:
    """The checkout of a commit, made if it does not exist; it is renamed to its name when it is whole."""
    from filelock import FileLock

    if name == CURRENT:
        return ROOT
    folder = outputs / "code" / commit
    partial = folder.with_name(f".{commit}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder.parent / ".lock"):
            if not folder.exists():
                remove(partial)  # of a call that was killed
                for gone in (partial, folder):  # git may know them, of outputs that were removed
                    with suppress(subprocess.CalledProcessError):
                        run_git(ROOT, "worktree", "remove", "--force", str(gone))
                add = ("-c", "core.hooksPath=/dev/null", "worktree", "add", "--force", "--detach")
                run_git(ROOT, *add, str(partial), commit, seconds=CHECKOUT_SECONDS)
                run_git(ROOT, "worktree", "move", str(partial), str(folder))
    except subprocess.CalledProcessError as error:
        reason = " ".join(error.stderr.split())
        raise ConfigError(
            f"code={name}: git could not check it out in {folder}: {reason}; remove the folder"
        ) from error
    if commit_of(folder) != (commit, False):
        remedy = f"commit its changes on a branch and name that, or remove {folder}"
        raise ConfigError(f"code={name}: {folder} is not as {commit[:8]} was checked out there; {remedy}")
    return folder
