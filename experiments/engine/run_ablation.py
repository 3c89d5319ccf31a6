"""`pw ablation name=ansc`: plan, train, sample, score, table.

    pw ablation name=ansc seeds=5 arms=baseline,full dry_run=true
    pw ablation name=ansc launcher=submitit launcher.partition=gpu
    pw ablation name=beta step_sampler.beta=0,0.2,0.4         several values of a key: a sweep

Words that are no options are overrides of `conf/`, for every run.
"""

from __future__ import annotations

import importlib
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from experiments.engine.ablation import AblationOptions
from experiments.engine.job import Job, all_jobs, fresh_results, remove_results
from experiments.engine.plan import Plan, make_plan
from experiments.engine.pool import FORK_SECONDS, Pool
from experiments.engine.queue.hand_over import Queue, farewell
from experiments.engine.queue.launcher import Local, Submitit, take_launcher
from experiments.engine.queue.units import Unit, units
from experiments.engine.run_display import RunDisplay, print_commands, print_plan
from experiments.engine.status import outline, write_outline
from experiments.engine.terminal import console
from pw.io.arguments import Command, ConfigError
from pw.io.progress import ignore_closed_stream
from pw.parallel.signals import Stopped
from pw.sample.evaluate import check_sampling
from pw.train.preflight import preflight


def run(options: AblationOptions) -> int:
    """Run an ablation and show its table; or print its plan, with `dry_run=true`.

    Exit status: 0 done, 1 some arm failed, 130 interrupted, 143 and such by a signal. Raises ConfigError.
    """
    launcher, overrides = take_launcher([f"launcher={options.launcher}", *options.overrides])
    plan = make_plan(replace(options, overrides=tuple(overrides)))
    _check_launch(plan, launcher)
    terminal = console()
    outputs = options.outputs
    jobs, rows = all_jobs(plan)
    removed = fresh_results(plan, jobs, outputs) if options.fresh else []
    if not options.dry_run:
        remove_results(removed)
    todo = [job for job in jobs if job.folder(outputs) in removed or not job.is_done(outputs)]
    display, summary = RunDisplay(terminal, len(todo)), outline(plan, jobs, rows)
    pool = _pool(launcher, plan, todo, units(todo, summary.cells), display)
    print_plan(terminal, plan, jobs, todo, removed, pool.seconds_left() + (FORK_SECONDS if todo else 0))
    if options.dry_run:
        print_commands(terminal, todo, pool.pending if isinstance(pool, Queue) else {}, outputs)
        return 0
    began = time.perf_counter()
    if todo:
        _preflight(plan, todo, launcher)
    write_outline(summary, plan.options)  # status and mlflow-sync find the call, also when all is cached
    if todo:
        threading.Thread(target=_import_for_the_table, args=(options.mlflow,), daemon=True).start()
        try:
            pool.run(todo, lambda: display.tick(pool))
        except (KeyboardInterrupt, Stopped) as stopped:
            kept = "what is finished is kept, the same command goes on from here"
            with ignore_closed_stream(sys.stdout):
                terminal.print(f"\ninterrupted; {farewell(pool) if isinstance(pool, Queue) else kept}", markup=False)
            return 128 + (stopped.signal if isinstance(stopped, Stopped) else signal.SIGINT)
    return finish(plan, rows, pool.failed, terminal, began)


def _check_launch(plan: Plan, launcher: Local | Submitit) -> None:
    """Checks that take no time, before anything is shown. Raises ConfigError."""
    if plan.options.fresh and any(arm.first.code == "as_trained" for arm in plan.arms):
        raise ConfigError("fresh=true: redoes what code=as_trained is to keep; leave one of them out")
    for arm in plan.arms:
        launcher.check_run(arm.first)
    if isinstance(launcher, Submitit) and not plan.options.dry_run:
        launcher.check()


def _preflight(plan: Plan, todo: Sequence[Job], launcher: Local | Submitit) -> None:
    """Whether data, weights, memory and disk are there, before the first run. Raises ConfigError."""
    for run in {job.run.training_signature: job.run for job in todo if job.kind != "score"}.values():
        preflight(run, plan.options.outputs, here=isinstance(launcher, Local))
    for arm in plan.arms:
        check_sampling(arm.first)


def _pool(
    launcher: Local | Submitit, plan: Plan, todo: Sequence[Job], pending: Sequence[Unit], display: RunDisplay
) -> Pool | Queue:
    """What runs the jobs: processes of this machine, or a queue."""
    outputs = plan.options.outputs
    if isinstance(launcher, Submitit):
        return Queue(launcher, plan.folder, outputs, pending, display.event)
    on_gpu = any(arm.first.trainer.accelerator == "gpu" for arm in plan.arms)  # one job at a time has it to itself
    pool = Pool(outputs, plan.options.workers or launcher.workers or on_gpu, display.event)
    pool.waiting = list(todo)
    return pool


def _import_for_the_table(mlflow: bool) -> None:
    """Import what the table needs while the workers work: this takes 10 s."""
    from pw.tracking.mlflow_log import warm_up

    for name in ("scipy.stats", "matplotlib.figure", "benchmarks.report.write"):
        importlib.import_module(name)
    if mlflow:
        warm_up()


def finish(plan: Plan, rows: Sequence[Any], failed: dict[str, str], console: Any, began: float) -> int:
    """Write, show and log the table of whatever was scored; exit status 1 if an arm failed."""
    from filelock import FileLock

    from benchmarks.report import write as report
    from experiments.engine.outcome.mlflow_sync import log_to_mlflow
    from experiments.engine.outcome.table import make_table, write_table
    from pw.tracking.mlflow_database import TrackingError

    try:
        result = make_table(plan, rows, failed)
    except ValueError as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    plan.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(plan.folder / ".lock"):  # another runner of the same ablation may be done now, too
        earlier = write_table(plan, result)
    console.print()
    console.print(report.terminal(result, console.width))
    console.print()
    console.print(report.terminal_verdict(result))
    if plan.options.mlflow:
        try:
            log_to_mlflow(plan, result, rows)
        except TrackingError as error:
            text = f"MLflow was not written ({error}); nothing is lost: `make mlflow-sync` takes it from the files"
            console.print(text, markup=False)
    console.print(
        f"\n{plan.folder}/table.{{md,tex,html,json,csv}}, plot.png, contact_sheet.png; "
        f"`make mlflow` compares the runs. {time.perf_counter() - began:.0f} s"
    )
    if earlier is not None:
        console.print(f"the table of other settings that was there is in {earlier}", markup=False)
    return 1 if failed else 0


main = Command(AblationOptions, run)
