"""The command line: `pw VERB key=value …`.

A verb is a function `main(words) -> exit status`; its module, listed here, is imported when the verb is called. Words
are `key=value`: options of the verb, or overrides of `conf/` if the verb accepts them.
"""

from __future__ import annotations

import importlib
import signal
import sys
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from importlib import metadata
from pathlib import Path

from pw.io import arguments
from pw.io.console import print_line
from pw.io.files import os_reason
from pw.io.paths import IS_CHECKOUT, ROOT, commit_of, import_suite_first
from pw.io.progress import finish_stream, ignore_closed_stream, open_streams
from pw.parallel.signals import Stopped, interruptible, print_stop


@dataclass(frozen=True)
class Verb:
    """One command.

    module         its `main` runs the command
    help           description in one line
    variants       value of `what=` -> module that runs the command instead
    exits_at_once  the process ends without waiting for threads of libraries
    """

    module: str
    help: str
    variants: Mapping[str, str] = field(default_factory=dict)
    exits_at_once: bool = False


VERBS = {
    "ablation": Verb("experiments.engine.run_ablation", "run one ablation to its table: name=ansc"),
    "ladder": Verb(
        "experiments.engine.ladder.ladder_command", "an ablation at one scale after another, stopped early: name=ansc"
    ),
    "ablations": Verb("experiments.engine.ablation", "list the ablations: what each varies, claims, and what came out"),
    "status": Verb("experiments.engine.status", "how far an ablation is, read from its files: name=ansc"),
    "runs": Verb("experiments.engine.runs", "list what was run: kind=train stage=hires since=2026-11-01"),
    "power": Verb(
        "experiments.engine.power_analysis.power_planner",
        "the smallest difference that n prompts and m seeds show; what=votes: that n votes show",
        {"votes": "experiments.engine.power_analysis.vote_planner"},
    ),
    "judge": Verb(
        "experiments.engine.judge.judge_command", "compare clips blindly, for the table: name=ansc judge=anna"
    ),
    "record": Verb("experiments.engine.outcome.verdict", "keep an ablation's outcome in experiments/results"),
    "share": Verb(
        "experiments.engine.share.share_command", "an ablation as one file for others: name=ansc out=ansc.zip"
    ),
    "open": Verb("experiments.engine.share.open_command", "show an ablation that somebody shared: FILE.zip"),
    "adopt": Verb("experiments.engine.share.adopt_command", "take over the results of a shared ablation: FILE.zip"),
    "train": Verb("pw.train.loop", "train one run: stage=hires objective=shortcut seed=1", exits_at_once=True),
    "sample": Verb(
        "experiments.engine.sample_command", "sample one run, which is trained first if need be", exits_at_once=True
    ),
    "coverage": Verb("pw.run.trained_pairs", "which (timestep, stride) pairs a step sampler trains"),
    "start": Verb(
        "pw.train.start", "train a start from its recipe, and write it with its card: name=hires", exits_at_once=True
    ),
    "replay": Verb("pw.train.batches", "compute again the batch of a loss that was not finite: FILE.json"),
    "export": Verb("pw.train.export", "write a training as a folder that diffusers opens: run=SIGNATURE"),
    "plan": Verb("pw.cost.planner", "tokens, FLOPs, memory and time before anything loads: scale=4k gpus=1x80GB"),
    "generate": Verb(
        "pw.generate.pipeline", 'prompt to 2K/4K video: prompt="a heron" scale=2k hires=…', exits_at_once=True
    ),
    "serve": Verb("pw.generate.serve", "generate behind a JSON API on 127.0.0.1: scale=2k hires=…", exits_at_once=True),
    "data": Verb("pw.prepare.ingest", "turn a folder of videos, or UltraVideo, into shards: path=DIR scale=2k"),
    "latents": Verb("pw.prepare.encode", "encode shards for training at proxy, 2k, 4k: scale=2k"),
    "weights": Verb(
        "pw.io.wan_weights",
        "fetch Wan2.2-TI2V-5B, or with what=metrics what the metrics need",
        {"metrics": "benchmarks.measure.metric_weights"},
    ),
    "score": Verb(
        "benchmarks.measure.score",
        "score videos: DIR metrics=mhd_mse,niqe out=scores.csv; what=sets: FVD, KVD",
        {"sets": "benchmarks.measure.set_scoring"},
    ),
    "table": Verb("benchmarks.report.paper_tables", "a table of the paper with ours beside it: name=table_2"),
    "compare": Verb("experiments.engine.compare.compare_runs", "two runs or folders of videos, paired: a=… b=…"),
    "system": Verb("benchmarks.systems.system_command", "generate with another system: name=wan2_2_5b prompts=FILE"),
    "lint-paper": Verb("benchmarks.paper.lint", "recompute the paper's derived numbers and print what does not add up"),
    "mlflow": Verb("pw.tracking.mlflow_ui", "open the MLflow UI on 127.0.0.1: port=5000"),
    "mlflow-sync": Verb("experiments.engine.outcome.mlflow_sync", "log the tables that MLflow lacks, from their files"),
    "notebooks-write": Verb(
        "experiments.engine.notebooks_write", "run the notebooks of a checkout, and keep their outputs in them"
    ),
    "bench": Verb(
        "benchmarks.speed.generation",
        "measure on this machine, side by side: what=generate|metrics|train",
        {"metrics": "benchmarks.speed.metric_speed", "train": "experiments.engine.bench"},
    ),
    "gpu-check": Verb("benchmarks.speed.gpu_check", "what only a GPU can show, in parts of 8 minutes: part=a,b,c"),
}
OVERVIEW = """usage: pw VERB key=value …

{}

pw VERB --help     its options
pw --version       of the suite and of torch
pw completion      for the shell: source <(pw completion)"""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status, 2 for invalid words. Without words it is the process's own."""
    import_suite_first()
    if words is not None:
        return _call(words)
    open_streams()
    try:
        status = _call(sys.argv[1:], is_process=True)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except OSError as error:
        print_line(f"error: {os_reason(error)}")
        status = 2
    if error := finish_stream(sys.stdout):
        if not status:
            print_line(f"error: stdout: {os_reason(error)}")
        return status or 2
    return status


def _call(words: Sequence[str], *, is_process: bool = False) -> int:
    verb, *options = [*words] or ["--help"]
    if verb in ("help", "--help", "-h") and options:
        verb, options = options[0], ["--help"]
    try:
        text = _information(verb, options)
    except arguments.ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if text is not None:
        print(text, flush=True)
        return 0
    if verb not in VERBS:
        hint = arguments.did_you_mean(verb, VERBS, cutoff=0.5)
        print(f"error: pw {verb}: there is no such command; {hint}`pw` lists them", file=sys.stderr)
        return 2
    command = VERBS[verb]
    variant = next((word.removeprefix("what=") for word in options if word.startswith("what=")), "")
    if variant in command.variants:
        options.remove(f"what={variant}")
    module = command.variants.get(variant, command.module)
    if command.exits_at_once and is_process:
        from pw.parallel.launch import run_and_exit

        run_and_exit(lambda options: importlib.import_module(module).main(options), options)
    return _run(module, options)


def _run(module: str, words: Sequence[str]) -> int:
    """Import a module and run its command; a signal or an error of the file system ends it in one line."""
    hint = "nothing was written"
    try:
        with interruptible():
            command = importlib.import_module(module).main
            hint = command.resume_hint
            return command(words)
    except (Stopped, KeyboardInterrupt) as stop:
        return print_stop(stop, hint)
    except BrokenPipeError as error:  # nobody reads the output any more
        with ignore_closed_stream(sys.stdout):
            raise error
        return 128 + signal.SIGPIPE
    except OSError as error:
        print_line(f"error: {os_reason(error)}; {hint}")
        return 2


def _information(verb: str, words: Sequence[str]) -> str | None:
    """The text of help or completion; None for a command to run."""
    if verb in ("--version", "version", "completion") and words:
        raise arguments.ConfigError(f"{words[0]}: pw {verb} takes no words")
    match verb:
        case "--version" | "version":
            return version_text()
        case "--help" | "-h" | "help":
            width = max(map(len, VERBS))
            return OVERVIEW.format("\n".join(f"  pw {name:{width}}  {entry.help}" for name, entry in VERBS.items()))
        case "completion":
            return (Path(__file__).parent / "completion.bash").read_text(encoding="utf-8").rstrip()
        case "complete":
            return "\n".join(candidates(" ".join(words)))
    return help_text(verb) if verb in VERBS and {"--help", "-h"} & {*words} else None


def version_text() -> str:
    """Version of the suite, the commit of a checkout, and the version of torch, without importing it."""
    try:
        version = metadata.version("pixelwizard")
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    commit, is_dirty = commit_of(ROOT) if IS_CHECKOUT else (None, None)
    place = f" (commit {commit[:12]}{', with changes' if is_dirty else ''})" if commit else ""
    return f"pw {version}{place}, torch {metadata.version('torch')}"


def help_text(verb: str) -> str:
    """The text of `pw VERB --help`: the description, and the options with their defaults."""
    entry = VERBS[verb]
    lines = [f"pw {verb}: {entry.help}"]
    for variant, module in {"": entry.module, **entry.variants}.items():
        options = importlib.import_module(module).main.options
        rows = arguments.describe(options)
        width = min(24, max((len(word) for word, _ in rows), default=0))
        lines += ["", *([f"what={variant}"] if variant else [])]
        for word, help in rows:
            lines += _help_lines(word, help, width)
        for option in fields(options):
            if option.name == "positional":
                lines.append(f"  {option.metadata['key']}  {option.metadata['help']}")
            if option.name == "overrides":
                text = "any override of conf/: weighting=uniform, train.updates=400"
                lines.append(f"  … and {option.metadata.get('help') or text}")
    return "\n".join(line.rstrip() for line in lines)


def _help_lines(word: str, help: str, width: int) -> list[str]:
    """An option and its description, beside it from column `width`, within 80 columns."""
    indent = " " * (width + 4)
    long = [f"  {word}"] if len(word) > width else []
    first = indent if long else f"  {word:{width}}  "
    wrap = partial(textwrap.wrap, width=80, break_long_words=False, break_on_hyphens=False)
    return [*long, *(wrap(help, initial_indent=first, subsequent_indent=indent) or [first])]


def candidates(line: str) -> list[str]:
    """The completions of the last word of a command line `pw VERB key=value …`."""
    *words, prefix = line.split(" ")[1:] or [""]
    if not words:
        return [verb for verb in VERBS if verb.startswith(prefix)]
    if words[0] not in VERBS:
        return []
    options = importlib.import_module(VERBS[words[0]].module).main.options
    choices = {}
    if any(field.name == "overrides" for field in fields(options)):
        from pw.run.compose import groups

        choices = groups()
    key, equals, _ = prefix.partition("=")
    if equals:
        matches = [f"{key}={value}" for value in (*arguments.values(options, key), *choices.get(key, ()))]
    else:
        matches = [f"{name}=" for name in (*arguments.keys(options), *choices)]
    return [word for word in matches if word.startswith(prefix)]
