"""`pw runs`: what was run in an outputs folder, the newest first, read from its files alone. Begin with `find_runs`.

    pw runs kind=train stage=hires objective=shortcut since=2026-11-01
    pw runs ablation=ansc arm=full json=runs.json
    pw runs weighting=uniform train.updates=400                    overrides, as they were written

A folder that cannot be read is named below the list.
"""

from __future__ import annotations

import math
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from shutil import get_terminal_size
from typing import Any, Literal

from experiments.engine.ledger import Claim, Ledger
from experiments.engine.outcome.result_files import read_result
from experiments.engine.status import cells_of, read_outline
from pw.io.arguments import Command, ConfigError, UnknownKeyError, did_you_mean, option
from pw.io.files import read_json, writable_file, write_json
from pw.io.paths import OUTPUTS
from pw.io.progress import ignore_closed_stream
from pw.run.compose import groups, override_key
from pw.train.record import curve_ends, overrides_in

SETTINGS = ("optimizer", "sampling", "train", "seed")  # top keys of a configuration that are no groups
KEPT = ("updates", "clips", "seed", "training", "wall_seconds", "cpu_seconds", "done", "total")  # of a done.json
UNITS = {"train": "update", "sample": "clip"}
SHOWN_SCORES = ("psd", "swd", "mhd_ratio")
DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
CHOICES = ("stage", "objective", "scale", "data")
# (beginning, what follows) in the text of a config.yaml, which is 100 times faster to search than to parse
PLACES = {
    "stage": ("\nstage: ", r"(\S+)"),
    "objective": ("\nobjective:\n", r"  _target_: \S*?(\w+)\n"),
    "scale": ("\nscale:\n", r"(?:  .*\n)*?  name: (\S+)"),
    "data": ("\ndata:\n", r"  _target_: (?:\S+\.)?(\w+)\.\w+\n"),
    "train": ("\ntrain:\n", r"(?:  .*\n)*?  updates: (\d+)"),
    "sample": ("\nsampling:\n", r"(?:  .*\n)*?  count: (\d+)"),
}


@dataclass(frozen=True)
class RunEntry:
    """One training, sampling or ablation of the list. The fields are the keys of the JSON file.

    when       of its end, else of its last sign of life, in local time
    signature  of a training or sampling; empty for an ablation
    commit     first 7 digits, and + for uncommitted changes; empty while it is not done
    labels     what it is in the latest call of each ablation that uses it: (ablation, label, arm, seed)
    overrides  as they were written, the last of each key
    outcome    in words; the numbers are in `values`
    """

    when: str
    kind: Literal["train", "sample", "ablation"]
    name: str
    signature: str
    state: str
    commit: str
    folder: str
    overrides: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)
    labels: Sequence[Sequence[str]] = ()
    outcome: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def matches(self, key: str, value: str) -> bool:
        """Whether a word `key=value` of `pw runs` selects it."""
        match key:
            case "kind" | "state":
                return getattr(self, key) == value
            case "commit" | "signature":
                return bool(value) and getattr(self, key).startswith(value[: 7 if key == "commit" else None])
            case "ablation":
                return value == (self.name if self.kind == "ablation" else "") or value in {
                    row[0] for row in self.labels
                }
            case "arm":
                return value in {row[2] for row in self.labels}
            case "since":
                return self.when >= value
            case "until":
                return self.when <= value
        return value == self.choices.get(key) or f"{key}={value}" in self.overrides


@dataclass(frozen=True)
class Records:
    """What an outputs folder says about its runs outside of their folders.

    claims  `train:<signature>` or `sample:<signature>` -> claim of a runner
    scores  signature of a sampling -> its scores
    labels  `train/<signature>` or `videos/<signature>` -> `RunEntry.labels`
    """

    claims: Mapping[str, Claim]
    scores: Mapping[str, Mapping[str, float]]
    labels: Mapping[str, Sequence[Sequence[str]]]


def find_runs(outputs: Path) -> tuple[list[RunEntry], list[str]]:
    """(all runs in an outputs folder, the newest first; a line for each folder that cannot be read)."""
    entries: list[RunEntry] = []
    damaged: list[str] = []

    def collect(path: Path, read: Callable[[Path], RunEntry | None]) -> None:
        try:
            if (entry := read(path)) is not None:
                entries.append(entry)
        except DAMAGE as error:
            reason = str(error) if isinstance(error, ConfigError) else f"{path}: cannot be read ({error!r})"
            damaged.append(" ".join(reason.split()))

    records = Records(_claims(outputs), _scores(outputs), _labels(outputs))
    for path in sorted((outputs / "train").glob("[!.]*")):
        collect(path, lambda path: _run_entry("train", path, records))
    for path in sorted((outputs / "videos").glob("[!.]*")):
        collect(path, lambda path: _run_entry("sample", path, records))
    for path in sorted(_ablation_folders(outputs)):
        collect(path, _ablation_entry)
        for table in path.glob("earlier/*/table.json"):
            collect(table.parent, _table_entry)
    return sorted(entries, key=lambda entry: entry.when, reverse=True), damaged


def _ablation_folders(outputs: Path) -> Iterator[Path]:
    for path in outputs.glob("*/"):
        if (path / "plan.json").exists() or (path / "table.json").exists():
            yield path


def _claims(outputs: Path) -> dict[str, Claim]:
    ledger, claims = Ledger(outputs), {}
    for path in ledger.folder.glob("*.json"):
        with suppress(*DAMAGE):  # the next runner deals with it
            if (claim := ledger.read(str((read_json(path) or {}).get("key")))) is not None:
                claims[":".join(claim.key.split(":")[:2])] = claim
    return claims


def _scores(outputs: Path) -> dict[str, dict[str, float]]:
    """Without the scores of floor and ceiling, which bear the signature of an arm."""
    scores: dict[str, dict[str, float]] = {}
    for path in (outputs / "scores").glob("*/scores.json"):
        with suppress(*DAMAGE):  # its run is listed without scores
            values = read_json(path) or {}
            contract = values["contract"]
            if contract["arm"] not in ("floor", "ceiling"):
                metrics = {name: value for name, value in values["metrics"].items() if math.isfinite(value)}
                scores.setdefault(contract["signature"], {}).update(metrics)
    return scores


def _labels(outputs: Path) -> dict[str, list[tuple[str, str, str, str]]]:
    labels: dict[str, list[tuple[str, str, str, str]]] = {}
    for path in sorted(_ablation_folders(outputs)):
        with suppress(*DAMAGE):  # the ablation is named below the list
            plan = read_outline(path.name, outputs)
            for task in plan.tasks.values() if plan else ():
                label = task.label.removeprefix(f"{task.kind} ")
                match = re.fullmatch(r"(?:\S+ solution of )?(.+) seed (\d+)", label)
                arm, seed = match.groups() if match else ("", "")
                labels.setdefault(task.folder, []).append((path.name, label, arm, seed))
    return labels


def _run_entry(kind: Literal["train", "sample"], folder: Path, records: Records) -> RunEntry | None:
    """A training or sampling; None for a folder with no more than a lock."""
    config, done_file = folder / "config.yaml", folder / "done.json"
    mark = read_json(done_file)
    if mark is None and done_file.exists():
        raise ConfigError(f"{done_file}: is truncated, or not JSON")
    if mark is None and not any(path.name != ".lock" for path in folder.iterdir()):
        return None
    text = config.read_text()
    overrides = {override_key(word): word for word in overrides_in(text, config)}
    choices = {key: override.partition("=")[2] for key, override in overrides.items() if key in CHOICES}
    choices |= {key: value.lower() for key in CHOICES if key not in choices and (value := _value_in(text, key))}
    ends = curve_ends(folder) if kind == "train" else {}
    step = ends.pop("step", (0, 0))[1]
    scores = records.scores.get(folder.name, {}) if kind == "sample" else {}
    claim = records.claims.get(f"{kind}:{folder.name}")
    state, outcome = ("done", []) if mark is not None else _state(folder, claim)
    newest = done_file
    if mark is None:
        done = int(max(step, claim.done if claim else 0)) if kind == "train" else len(list(folder.glob("[0-9]*.mkv")))
        total = int(_value_in(text, kind) or 0)
        mark, newest = {"done": done, "total": total}, max((config, folder / "metrics.jsonl", folder), key=_modified)
        outcome.append(f"{UNITS[kind]} {done:,} of {total:,}")
    outcome += [f"{name} {first:.3g} → {last:.3g}" for name, (first, last) in ends.items()]
    outcome += [f"{name} {scores[name]:.3g}" for name in SHOWN_SCORES if name in scores]
    return RunEntry(
        _stamp(newest),
        kind,
        folder.name,
        folder.name,
        state,
        _commit(mark),
        str(folder),
        list(overrides.values()),
        choices,
        records.labels.get(f"{folder.parent.name}/{folder.name}", ()),
        ", ".join(outcome),
        {key: mark[key] for key in KEPT if key in mark} | dict(ends) | dict(scores),
    )


def _value_in(text: str, place: str) -> str:
    """The value at one of `PLACES` in the text of a config.yaml; empty if it is not there."""
    beginning, pattern = PLACES[place]
    position = text.find(beginning)
    match = re.compile(pattern).match(text, position + len(beginning)) if position >= 0 else None
    return match[1] if match else ""


def _state(folder: Path, claim: Claim | None) -> tuple[str, list[str]]:
    """(state of a training or sampling without done.json, why it failed)."""
    from filelock import FileLock, Timeout

    if claim is not None and claim.state == "failed":
        return "failed", [claim.error]
    if claim is not None and claim.is_active:
        return claim.state, []
    try:
        with FileLock(folder / ".lock", timeout=0) if (folder / ".lock").exists() else nullcontext():
            pass
    except Timeout:
        return "running", []
    except OSError:  # a folder of somebody else
        pass
    return ("failed", ["a loss was not finite"]) if any(folder.glob("not_finite/*")) else ("stopped", [])


def _ablation_entry(folder: Path) -> RunEntry:
    """The latest call of an ablation."""
    outputs, plan = folder.parent, read_outline(folder.name, folder.parent)
    if plan is None:
        if (folder / "plan.json").exists():
            raise ConfigError(f"{folder / 'plan.json'}: is truncated, or not a plan; run the ablation again")
        return _table_entry(folder)
    words = (read_json(folder / "plan.json") or {})["words"]
    states = [cell.state for cell in cells_of(plan, outputs)]
    state = next((s for s in ("failed", "running", "queued") if s in states), "stopped")
    state = "done" if set(states) <= {"done"} else state
    progress = f"{states.count('done')} of {len(states)} runs" if state != "done" else ""
    entry = _table_entry(folder) if (folder / "table.json").exists() else None
    stamp = _stamp(folder / "plan.json")
    return RunEntry(
        max(stamp, entry.when) if entry else stamp,
        "ablation",
        folder.name,
        "",
        state,
        entry.commit if entry else "",
        str(folder),
        words[1:],
        entry.choices if entry else {},
        outcome=", ".join(part for part in (progress, entry.outcome if entry else "no table yet") if part),
        values={"done": states.count("done"), "total": len(states), **(entry.values if entry else {})},
    )


def _table_entry(folder: Path) -> RunEntry:
    """A table, of the latest call of an ablation or an earlier one."""
    table = read_result(folder / "table.json", {}, "run the ablation again")
    contract, answers = table["contract"], [row["answer"] for row in table["verdict"]]
    counts = {answer: answers.count(answer) for answer in dict.fromkeys(answers)}
    outcome = ", ".join(f"{answer} {count}" for answer, count in counts.items())
    is_earlier = folder.parent.name == "earlier"
    name = folder.parents[1].name if is_earlier else folder.name
    return RunEntry(
        _stamp(folder / "table.json"),
        "ablation",
        name,
        "",
        "done",
        _commit(contract),
        str(folder),
        table["settings"],
        {key: str(contract[key]) for key in ("scale", "data") if key in contract},
        outcome=", ".join(part for part in ("an earlier table" if is_earlier else "", outcome) if part),
        values={"verdict": counts},
    )


def _commit(mark: Mapping[str, Any]) -> str:
    """Of a done.json, or of the contract of a table, which lists several."""
    commit, dirty = (v[0] if isinstance(v := mark.get(key), list) else v for key in ("git_commit", "dirty"))
    return f"{commit[:7]}{'+' if dirty else ''}" if commit else ""


def _modified(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _stamp(path: Path) -> str:
    return datetime.fromtimestamp(_modified(path)).isoformat(timespec="seconds")


def print_runs(entries: Sequence[RunEntry]) -> None:
    """Print a line per run, and below it what it was, within 80 columns or the terminal's width."""
    width = get_terminal_size((80, 24)).columns if sys.stdout.isatty() else 80
    lines = [f"{'when':16}  {'kind':8}  {'name':8}  {'state':7}  {'commit':8}  what came out"]
    for entry in entries:
        when = entry.when[:16].replace("T", " ")
        head = f"{when}  {entry.kind:8}  {entry.name:8}  {entry.state:7}  {entry.commit:8}"
        labels = ", ".join(f"{ablation}: {label}" for ablation, label, *_ in entry.labels)
        below = [part for part in (labels, " ".join(entry.overrides)) if part]
        if len(head) + 2 + len(entry.outcome) <= width:
            head += f"  {entry.outcome}"
        elif entry.outcome:
            below.insert(0, entry.outcome)
        lines.append(head.rstrip())
        for part in below:
            lines += textwrap.wrap(
                part, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False
            )
    with ignore_closed_stream(sys.stdout):
        print("\n".join(lines), flush=True)


def _day_or_time(end: timedelta) -> Callable[[str], str]:
    def read(text: str) -> str:
        try:
            time = datetime.fromisoformat(text)
            time = time.astimezone().replace(tzinfo=None) if time.tzinfo else time  # local, as the list is
        except ValueError:
            raise ValueError("a day or a time, e.g. 2026-11-01 or 2026-11-01T14:30") from None
        return (time + end if len(text) <= len("2026-11-01") else time).isoformat(timespec="seconds")

    return read


@dataclass(frozen=True)
class RunsOptions:
    """The options of `pw runs`: all but outputs and json select runs."""

    kind: Literal["train", "sample", "ablation"] | None = option(None, "what it is")
    state: Literal["done", "running", "queued", "failed", "stopped"] | None = option(None, "how it is")
    since: str = option("", "a day or a time, 2026-11-01 or 2026-11-01T14:30", read=_day_or_time(timedelta(0)))
    until: str = option("", "likewise; a day counts whole", read=_day_or_time(timedelta(days=1, seconds=-1)))
    ablation: str = option("", "runs of the latest call of an ablation, and its tables")
    arm: str = option("", "runs of an arm")
    commit: str = option("", "the first digits of the commit that made it")
    signature: str = option("", "the first digits of its signature")
    json: Path | None = option(None, "a file for the list as JSON", read=writable_file("json"))
    outputs: Path = option(OUTPUTS, "folder of all results")
    overrides: tuple[str, ...] = field(
        default=(), metadata={"help": "stage=, objective=, scale=, data=, or an override as it was written"}
    )


def run(options: RunsOptions) -> int:
    """Print the list, and write it to `json=`; exit status 0. Raises ConfigError."""
    outputs = options.outputs.expanduser().resolve()
    for word in options.overrides:
        _check_word(word)
    if not outputs.is_dir() and options.outputs != OUTPUTS:
        raise ConfigError(f"outputs={options.outputs}: there is no such folder")
    names = ("kind", "state", "since", "until", "ablation", "arm", "commit", "signature")
    words = [(name, value) for name in names if (value := getattr(options, name))]
    words += [(key, value) for key, _, value in (word.partition("=") for word in options.overrides)]
    entries, damaged = find_runs(outputs)
    chosen = [entry for entry in entries if all(entry.matches(*word) for word in words)]
    if options.json is not None:
        write_json(options.json, [asdict(entry) for entry in chosen])
    if chosen:
        print_runs(chosen)
    else:
        print(f"no run in {outputs}" + (f" is {' '.join('='.join(word) for word in words)}" if words else " yet"))
    for line in damaged:
        print(f"not listed: {line}", file=sys.stderr)
    return 0


def _check_word(word: str) -> None:
    """Raises ConfigError for an override whose key or choice does not exist."""
    key, equals, value = word.partition("=")
    known = groups()
    if not equals or key.split(".")[0] not in (*known, *SETTINGS):
        hint = did_you_mean(key, (*known, *SETTINGS))
        raise UnknownKeyError(f"{word}: no run has a key {key!r}; {hint}`pw runs --help` lists the words", key)
    if key in known and value not in known[key]:
        raise ConfigError(f"{word}: {key} is one of {', '.join(known[key])}{did_you_mean(value, known[key], '; ')}")


main = Command(RunsOptions, run)
