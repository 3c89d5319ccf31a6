"""`pw ablation name=ansc`: plan the runs, train, sample, score, and write the table. Begin with `run`.

    pw ablation name=ansc seeds=5 arms=baseline,full dry_run=true
    pw ablation name=ansc launcher=submitit launcher.partition=gpu
    pw ablation name=beta step_sampler.beta=0,0.2,0.4         several values of a key: a sweep

Words that are no options are overrides of `conf/` for every run.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.engine.ablation import AblationOptions
from experiments.engine.ablation_tracking import AblationTracking
from experiments.engine.job import Job, Row, all_jobs, jobs_to_run, remove_results, results_to_remove, served_by
from experiments.engine.plan import Plan, make_plan, other_code, start_words, starts
from experiments.engine.pool import FORK_SECONDS, Pool
from experiments.engine.queue.hand_over import Queue
from experiments.engine.queue.launcher import Local, Submitit, Unit, take_launcher, units
from experiments.engine.revisions.revision_run import RevisionRun, servers
from experiments.engine.share.adopted import adopted_notes
from experiments.engine.status import outline, write_outline
from pw.cost.rates import rate_text
from pw.io.arguments import Command, ConfigError
from pw.io.command_line import command_line, without_make
from pw.io.console import console
from pw.io.files import check_writable
from pw.io.manifest import DamagedResult
from pw.io.progress import ProgressLine, duration, ignore_closed_stream
from pw.parallel.signals import Stopped, print_stop
from pw.sample.evaluate import check_sampling
from pw.tracking.loggers import MLflow
from pw.train.loop import outputs_word
from pw.train.preflight import check_device, preflight
from pw.train.watch import unlogged

MAX_KEYS = 4  # in which arms differ, for a column per key
CODE_NOTES = 6  # notes on trainings by other code that a plan prints
FOLDERS = ("ledger", "logs", "reference", "scores", "train", "videos")  # in the outputs
RESUME = "finished results are kept; run the same command again to resume"


def run(options: AblationOptions) -> int:
    """Run an ablation and print its table, or print only its plan with `dry_run=true`.

    Exit status: 0 done, 1 some arm failed or some file was not written, 128 + number of the signal that stopped it.
    Raises ConfigError.
    """
    return run_plan(*prepare(options))


def prepare(options: AblationOptions) -> tuple[Plan, Local | Submitit]:
    """The plan of an ablation and where its jobs run, checked. Raises ConfigError."""
    _check_outputs(options)
    launcher, overrides = take_launcher([f"launcher={options.launcher}", *options.overrides])
    plan = make_plan(replace(options, overrides=tuple(overrides)))
    _check_launch(plan, launcher)
    return plan, launcher


def run_plan(plan: Plan, launcher: Local | Submitit, *, is_part: bool = False) -> int:
    """Run the jobs of a plan, and print and write its table, or with `is_part` neither plan nor table.

    Returns the exit status, as `run`. Raises ConfigError.
    """
    options, outputs, terminal = plan.options, plan.options.outputs, console()
    jobs, rows = all_jobs(plan)
    removals = results_to_remove(plan, jobs, outputs) if options.fresh else []
    todo = jobs_to_run(jobs, outputs, removals)
    if isinstance(launcher, Local) and not options.dry_run:
        for job in todo:
            if job.kind != "score":
                check_device(job.run)
    if todo and not options.dry_run:
        check_writable("outputs", outputs)
        remove_results(removals)
    display, summary, tracking = RunDisplay(terminal, len(todo)), outline(plan, jobs, rows), AblationTracking(plan)

    def event(state: str, job: Job, text: str) -> None:
        tracking.event(state, job)
        display.event(state, job, text)

    if isinstance(launcher, Submitit):
        pool = Queue(launcher, plan.folder, outputs, units(todo, summary.cells), event)
    else:
        on_gpu = any(arm.first.trainer.accelerator == "gpu" for arm in plan.arms)  # then one job at a time
        pool = Pool(outputs, options.workers or launcher.workers or on_gpu, event)
        pool.waiting = list(todo)
    if not is_part:
        print_plan(terminal, plan, jobs, todo, removals, pool.seconds_left() + (FORK_SECONDS if todo else 0))
    if options.dry_run:
        print_commands(terminal, todo, pool.pending if isinstance(pool, Queue) else {}, outputs)
        return 0
    start_time = time.perf_counter()
    if todo:
        _check_todo(plan, todo, on_this_machine=isinstance(launcher, Local))
    with nullcontext() if todo else suppress(OSError):  # all that is cached can be shown from where nothing is written
        write_outline(summary, plan.options)  # for status and mlflow-sync, also when all jobs are cached
    if todo:
        threading.Thread(target=_import_report_modules, args=(_mlflow(plan) is not None,), daemon=True).start()
        try:
            revisions = [job.run.revision for job in todo if isinstance(job.run, RevisionRun) and job.kind != "score"]
            with servers(revisions if isinstance(pool, Pool) else ()) as served:
                pool.run([served_by(job, served) for job in todo], lambda: display.tick(pool))
            tracking.scores(rows)
        except (KeyboardInterrupt, Stopped) as stop:
            display.line.clear()
            return print_stop(stop, pool.interrupt_message() if isinstance(pool, Queue) else RESUME)
        finally:
            problem = tracking.live.close()
        if problem:
            terminal.print(unlogged(problem), markup=False)
    return int(bool(pool.failures)) if is_part else finish(plan, rows, pool.failures, terminal, start_time)


def _check_outputs(options: AblationOptions) -> None:
    """Check the outputs before anything is planned. Raises ConfigError."""
    outputs = options.outputs
    if not outputs.is_dir() and not options.dry_run:
        check_writable("outputs", outputs)
    for path in (outputs / name for name in (*FOLDERS, options.name)):
        if os.path.lexists(path) and not path.is_dir():
            raise ConfigError(f"outputs={outputs}: {path} is no folder, but results go there; move it away")


def _check_todo(plan: Plan, todo: Sequence[Job], *, on_this_machine: bool) -> None:
    """Check data, weights, memory and disk. Raises ConfigError."""
    for training in {job.run.training_signature: job.run for job in todo if job.kind != "score"}.values():
        with suppress(DamagedResult):  # its job fails by name, and the others run
            preflight(training, plan.options.outputs, on_this_machine=on_this_machine)
    for arm in plan.arms:
        check_sampling(arm.first, on_this_machine=on_this_machine)


def _check_launch(plan: Plan, launcher: Local | Submitit) -> None:
    """Check what takes no time, before the plan is printed. Raises ConfigError."""
    if plan.options.columns:
        from benchmarks.report.render import check_columns

        check_columns(plan.options.columns, plan.ablation.metrics, plan.ablation.paper)
    if plan.options.fresh and any(arm.first.code == "as_trained" for arm in plan.arms):
        raise ConfigError("fresh=true: deletes the results that code=as_trained reuses; set only one of them")
    for arm in plan.arms:
        launcher.check_run(arm.first)
        if isinstance(launcher, Submitit) and isinstance(arm.first, RevisionRun) and arm.first.trainer.processes > 1:
            reason = f"launcher=submitit trains {arm.first.trainer.processes} processes by the current code only"
            raise ConfigError(f"code={arm.first.revision.name}: {reason}; set launcher=local")
    if isinstance(launcher, Submitit) and not plan.options.dry_run:
        launcher.check()


def _import_report_modules(mlflow: bool) -> None:
    """Import the modules of the table while the workers run: this takes 10 s."""
    from pw.tracking.mlflow_log import warm_up

    for name in ("scipy.stats", "matplotlib.figure", "jinja2", "benchmarks.report.write"):
        importlib.import_module(name)
    if mlflow:
        warm_up()


def finish(
    plan: Plan,
    rows: Sequence[Row],
    failures: dict[str, str],
    console: Any,
    start_time: float,
    *,
    is_shown: bool = True,
) -> int:
    """Write, print and log the table of all scores on disk; exit status 1 if an arm failed, or a file, or MLflow.

    The table comes first. What cannot be written after it is named and costs nothing else.
    is_shown: False prints only what could not be written
    """
    from benchmarks.report import write as report
    from experiments.engine.outcome.table import make_table
    from experiments.engine.outcome.table_files import write_pictures, write_table

    try:
        result = make_table(plan, rows, failures)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    unwritten: list[str] = []
    can_write, archive = _can_write(plan.folder, unwritten), None
    if can_write:
        archive = write_table(plan, result, unwritten)
    if is_shown:
        console.print()
        console.print(report.terminal(result, console.width))
        console.print()
        console.print(report.terminal_verdict(result))
    if can_write:
        write_pictures(plan, result, unwritten)
        _log_to_mlflow(plan, result, rows, unwritten)
    if is_shown:
        files = f"{plan.folder}/index.html shows it with its clips; table.{{md,tex,json,csv}}, plot.png"
        runs = f"{without_make('`make mlflow`')} compares the runs. {time.perf_counter() - start_time:.0f} s"
        console.print(f"\n{files}, contact_sheet.png; {runs}", markup=False)
    for line in unwritten:
        console.print(line, style="red", markup=False, soft_wrap=True)
    if archive is not None:
        message = f"the previous table is of other settings or data and was moved to {archive}"
        console.print(message, markup=False, soft_wrap=True)  # on one line, so that the path can be copied
    return 1 if failures or unwritten else 0


def _can_write(folder: Path, unwritten: list[str]) -> bool:
    """Whether a table's files can be written; adds the reason to `unwritten` if not."""
    try:
        check_writable("outputs", folder)
    except ConfigError as error:
        unwritten.append(f"the table is only shown here, no file was written: {error}")
        return False
    return True


def _mlflow(plan: Plan) -> MLflow | None:
    tracking = plan.arms[0].first.tracking
    return tracking if isinstance(tracking, MLflow) else None


def _log_to_mlflow(plan: Plan, result: dict[str, Any], rows: Sequence[Row], unwritten: list[str]) -> None:
    """Log the table to MLflow, with `tracking=mlflow`; adds what went wrong to `unwritten`."""
    from experiments.engine.outcome.mlflow_sync import log_to_mlflow
    from pw.tracking.mlflow_log import TrackingError

    mlflow = _mlflow(plan)
    if mlflow is None:
        return
    try:
        log_to_mlflow(plan, result, rows, mlflow.uri)
    except Exception as error:  # whatever it is, the table is there
        reason = str(error) if isinstance(error, TrackingError | ValueError) else f"{type(error).__name__}: {error}"
        remedy = "nothing is lost: `make mlflow-sync` logs it from the files"
        unwritten.append(without_make(f"MLflow was not written ({reason}); {remedy}"))


# ---- output to the terminal


def print_commands(console: Any, todo: Sequence[Job], units: Mapping[str, Unit], outputs: Path) -> None:
    """For `dry_run=true`: print the jobs of the queue, if there is one, and a command per job."""
    for unit in units.values():
        order = f" after {', '.join(unit.needs)}" if unit.needs else ""
        processes = f", {unit.trainer.nodes} x {unit.trainer.devices} processes" if unit.tasks > 1 else ""
        console.print(f"  queue job {unit.name}: {len(unit.jobs)} jobs{processes}{order}", markup=False)
    folders = {job.run.revision.checkout_command for job in todo if isinstance(job.run, RevisionRun)}
    for command in sorted(filter(None, folders)):
        console.print(f"  {command}", markup=False, soft_wrap=True)
    for job in todo:  # each command on one line, so that it can be copied
        if job.kind == "score":
            console.print(f"  # score {job.score['videos']}", style="dim", markup=False, soft_wrap=True)
            continue
        words = [*job.run.config.overrides, *outputs_word(outputs)]
        if job.kind == "sample" and job.seed != job.run.seed:
            words.append(f"evaluation_seed={job.seed}")
        write = job.run.command if isinstance(job.run, RevisionRun) else command_line
        console.print(f"  {write(job.kind, *words)}", markup=False, soft_wrap=True)


def print_plan(
    console: Any, plan: Plan, jobs: Sequence[Job], todo: Sequence[Job], removals: Sequence[Path], seconds: float
) -> None:
    """Print the arms, which of their runs are trained, notes on trainings by other code, and the remaining work."""
    console.print(f"[bold]{plan.name}[/]: {plan.statement.title}")
    console.print(_arms(plan, {job.key for job in todo}))
    notes = [start_words(start) for start in starts(plan).values() if start.card or start.start_run or start.note]
    notes += plan.code_notes
    code_notes = other_code(plan)
    hidden = len(code_notes) - CODE_NOTES
    notes += [*code_notes[:CODE_NOTES], f"and {hidden} more such notes"] if hidden > 1 else code_notes
    outputs = plan.options.outputs
    notes += adopted_notes([(job.kind, job.folder(outputs)) for job in jobs if job.folder(outputs) not in removals])
    if plan.options.fresh:
        verb = "would remove" if plan.options.dry_run else "removed"
        notes.append(f"fresh=true {verb} {len(removals)} folders of results; starts stay, other ablations share them")
        notes += [f"  {folder}" for folder in removals] if plan.options.dry_run else []
    for line in notes:
        console.print(line, markup=False, soft_wrap=line.startswith(" "))  # a folder stays in one line
    cached = len(jobs) - len(todo)
    if not todo:
        console.print(f"all {cached} jobs are cached")
        return
    kinds = {kind: sum(job.kind == kind for job in todo) for kind in ("train", "sample", "score")}
    console.print(
        f"{kinds['train']} trainings, {kinds['sample']} samplings, {kinds['score']} scorings to do, {cached} cached; "
        f"about {duration(seconds)} {rate_text(plan.arms[0].first)}"
    )


def _arms(plan: Plan, keys: Collection[str]) -> Any:
    """Rich's table with a row per arm: what is varied, and whether its runs are trained. keys: of the jobs to do."""
    from rich.markup import escape
    from rich.table import Table

    is_narrow = len(plan.arms[0].varied) > MAX_KEYS
    table = Table(box=None, pad_edge=False)
    headers = ("settings; below, what differs from the row above",) if is_narrow else (*plan.arms[0].varied,)
    for header in ("arm", *headers, "seeds"):
        table.add_column(header, overflow="fold")
    above: dict[str, str] = {}
    for arm in plan.arms:
        seeds: dict[str, list[str]] = {}
        for seed, run in arm.runs.items():
            state = "to train" if f"train:{run.training_signature}" in keys else "trained"
            seeds.setdefault(state, []).append(str(seed))
        states = "; ".join(f"{state} {', '.join(of)}" for state, of in seeds.items())
        values = {key: escape(str(value).replace("'", "").replace(", ", ",")) for key, value in arm.varied.items()}
        differing = (f"{key}={value}" for key, value in values.items() if above.get(key) != value)
        table.add_row(arm.name, *([" ".join(differing)] if is_narrow else values.values()), states)
        above = values
    return table


class RunDisplay:
    """Progress while jobs run: a live line, or without a terminal a new line every 15 s."""

    def __init__(self, console: Any, total: int) -> None:
        self.console, self.total, self.done = console, total, 0
        self.line = ProgressLine(console.file)
        self.named_claims: set[tuple[str, str]] = set()  # (key, owner) of claims of others that were printed

    def event(self, state: str, job: Job, text: str) -> None:
        from rich.markup import escape

        if state in ("done", "failed", "skipped"):
            self.done += 1
        if state == "done" and job.kind == "train":
            self._line(f"[green]✓[/] {job.label} ({text})")
        elif state == "stopping":
            self._line(f"{job.label}: {text}")
        elif state in ("failed", "skipped"):
            self._line(f"[red]✗ {escape(f'{job.label}: {text}')}[/]")

    def tick(self, pool: Pool | Queue) -> None:
        from rich.markup import escape

        for claim in pool.other_claims.values():
            if (claim.key, claim.owner) not in self.named_claims:
                self.named_claims.add((claim.key, claim.owner))
                self._line(escape(pool.ledger.takeover(claim)))
        if not self.line.is_due:
            return
        activity = ", ".join(f"{r.job.label} {100 * r.share:.0f} %" for r in pool.running)
        if pool.other_claims:
            claim = next(iter(pool.other_claims.values()))
            activity += f"{', ' * bool(activity)}{len(pool.other_claims)} claimed by {claim.location}"
        text = f"{self.done} of {self.total} done, about {duration(pool.seconds_left())} left: {activity}"
        # not by rich, which drops the carriage return
        self.line.show(text[: self.console.width - 1] if self.line.is_live else text)

    def _line(self, text: str) -> None:
        self.line.clear()
        with ignore_closed_stream(self.console.file):
            self.console.print(text)


main = Command(AblationOptions, run, resume_hint=RESUME)
