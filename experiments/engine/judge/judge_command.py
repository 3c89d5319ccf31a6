"""`pw judge name=ansc judge=anna`: compare clips of two arms, not knowing which; the votes enter the table.

    pw judge name=ansc judge=anna votes=60            a page on 127.0.0.1; call again to go on
    pw judge name=ansc judge=ben export=for-ben       a folder to send; ben sends votes-ben.json back
    pw judge name=ansc add=votes-ben.json
    pw judge name=ansc report=true                    judges, arms, and which metrics agree with people

The arms and seeds are those of the latest `pw ablation name=ansc`.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.engine.ablation import Clause, names
from experiments.engine.job import all_jobs
from experiments.engine.judge.judge_server import JudgeServer
from experiments.engine.judge.vote_files import VoteFile, take_answers
from experiments.engine.judge.vote_media import Shown, check_empty, export, prepare
from experiments.engine.judge.vote_plan import (
    Clips,
    VotePlan,
    clips_of,
    draw_plan,
    gaps_of,
    is_current,
    read_plans,
    votes_folder,
    without_gaps,
)
from experiments.engine.judge.vote_report import read_judges, report_lines, votes_of
from experiments.engine.outcome.verdict import clauses_of
from experiments.engine.plan import Plan, make_plan, parse
from pw.io.arguments import Command, ConfigError, did_you_mean, number, option
from pw.io.command_line import command_line
from pw.io.console import one_line, print_line
from pw.io.files import check_writable, exclusive_lock, parse_json
from pw.io.host import check_port
from pw.io.paths import OUTPUTS
from pw.train.loop import outputs_word, results_folder

NAMED = 5  # gaps that are printed


def _judge(text: str) -> str:
    if text != one_line(text).strip() or len(text) > 60:
        raise ValueError("expected a name of at most 60 characters")
    return text


def _new_folder(text: str) -> Path:
    folder = Path(text).expanduser()
    check_empty(folder)
    check_writable("export", folder)
    return folder


@dataclass(frozen=True)
class JudgeOptions:
    """The options of `pw judge`."""

    name: str = option(help="the ablation whose clips are compared", values=names)
    judge: str = option("", "who votes; a judge who stopped goes on", read=_judge)
    votes: int = option(60, "pairs of arms for this judge, in all; checks come on top", read=number(1, 10_000))
    arms: tuple[str, ...] = option((), "only these arms, two or more")
    port: int = option(8000, "where the page is served, on 127.0.0.1", read=number(1024, 65535))
    export: Path | None = option(None, "write the page to this new folder, instead of serving it", read=_new_folder)
    add: Path | None = option(None, "take in a file of answers that an exported page saved")
    report: bool = option(False, "print judges, arms, and which metrics agree with people")
    outputs: Path = option(OUTPUTS, "where the clips are", read=results_folder)

    def __post_init__(self) -> None:
        tasks = [key for key in ("judge", "add", "report") if getattr(self, key)]
        if len(tasks) != 1:
            given = f"{' and '.join(tasks)} are given" if tasks else "judge=… is missing: the name of who votes"
            raise ConfigError(f"{given}; give one of judge=NAME, add=FILE, report=true")
        if self.export is not None and not self.judge:
            raise ConfigError(f"export={self.export}: judge=… is missing: the name of who will vote")


def run(options: JudgeOptions) -> int:
    """Serve, export, take in or report. Exit status 0. Raises ConfigError."""
    if options.add is not None and not options.add.is_file():
        raise ConfigError(f"add={options.add}: there is no such file")
    if options.judge and options.export is None:
        check_port(options.port, "another judge")
    words, known = latest_call(options.name, options.outputs)
    arms = _arms(options.arms, known)
    plan = make_plan(parse([*words, f"outputs={options.outputs}"]))
    folder = votes_folder(plan)
    if options.report:
        votes = votes_of(plan, all_jobs(plan)[1])
        if votes is None:
            raise ConfigError(f"report=true: nobody has voted on {plan.name} yet; pw judge name={plan.name} judge=NAME")
        print("\n".join(report_lines(read_judges(plan), votes)))
        return 0
    if options.add is not None:
        vote_plan, new = take_answers(options.add, read_plans(folder), folder)
        answered = len(VoteFile(vote_plan, folder).answers)
        print(f"{vote_plan.judge}: {new} new answers, {answered} of {len(vote_plan.pairs)} in all")
        return write_again(plan)
    check_writable("outputs", folder)
    with exclusive_lock(folder / ".plans.lock"):
        vote_plan, shown = plan_for(options, plan, arms, clips_of(plan))
    if options.export is not None:
        export(vote_plan, shown, options.export)
        print(f"{options.export / 'index.html'}: {_asked(vote_plan)}; send the folder")
        print("the page saves a file of answers, to be sent back; this takes it in:")
        print(f"  {command_line('judge', f'name={plan.name}', 'add=FILE', *outputs_word(options.outputs))}")
        return 0
    return serve(plan, vote_plan, shown, options.port)


def latest_call(name: str, outputs: Path) -> tuple[list[str], list[str]]:
    """(words, arms) of the latest call of an ablation. Raises ConfigError if there is none."""
    if name not in names():
        raise ConfigError(f"name={name}: no such ablation; {did_you_mean(name, names())}there are {', '.join(names())}")
    try:
        record = parse_json((outputs / name / "plan.json").read_text(encoding="utf-8"))
        return record["words"], list(dict.fromkeys(arm for arm, *_ in record["cells"]))
    except (OSError, ValueError, LookupError, TypeError):
        message = f"name={name}: has not run in {outputs}; `make ablation name={name}` makes its clips"
        raise ConfigError(message) from None


def _arms(chosen: Sequence[str], known: Sequence[str]) -> Sequence[str]:
    for arm in chosen:
        if arm not in known:
            raise ConfigError(f"arms={arm}: no such arm; {did_you_mean(arm, known)}there are {', '.join(known)}")
    arms = chosen or known
    if len(set(arms)) < max(2, len(arms)):
        raise ConfigError(f"arms={','.join(arms)}: expected two arms or more, each once")
    return arms


def plan_for(options: JudgeOptions, plan: Plan, arms: Sequence[str], clips: Clips) -> tuple[VotePlan, Shown]:
    """The unfinished plan of a judge, or a new one for the votes that are missing. Raises ConfigError."""
    folder, is_exported = votes_folder(plan), options.export is not None
    _print_gaps(list(gaps_of(clips)))
    plans, voted = read_plans(folder), 0
    for earlier in (earlier for earlier in plans if earlier.judge == options.judge):
        answers = VoteFile(earlier, folder).answers
        current = [pair for pair in earlier.pairs if is_current(pair, clips)]
        voted += sum(pair.kind == "arms" and pair.id in answers for pair in current)
        if len(answers) < len(earlier.pairs) == len(current) and earlier.exported == is_exported:
            shown, missing = prepare(earlier, clips, folder)
            if not missing:
                return earlier, shown
    open_votes = options.votes - voted
    if open_votes <= 0:
        raise ConfigError(f"votes={options.votes}: {options.judge} has given {voted}; ask for more to go on")
    first = [frozenset((pair.arm, pair.other)) for clause in _clauses(plan) for pair in clause.pairs()]
    vote_plan = draw_plan(options.judge, open_votes, arms, clips, plans, first, exported=is_exported)
    shown, missing = prepare(vote_plan, clips, folder)
    _print_gaps(sorted(set(missing.values())))
    vote_plan = without_gaps(vote_plan, missing)
    asked = sum(pair.kind == "arms" for pair in vote_plan.pairs)
    if not asked:
        raise ConfigError(f"name={plan.name}: no pair of clips can be shown")
    if asked < open_votes:
        print_line(f"votes={options.votes}: {options.judge} has not seen {asked} pairs of clips yet; all are asked")
    vote_plan.write(folder)
    return vote_plan, shown


def _print_gaps(gaps: Sequence[str]) -> None:
    more = [f"and {len(gaps) - NAMED} more clips"] if len(gaps) > NAMED else []
    for text in [*gaps[:NAMED], *more]:
        print_line(f"not shown: {text}")


def _asked(plan: VotePlan) -> str:
    checks = sum(pair.kind != "arms" for pair in plan.pairs)
    return f"{len(plan.pairs)} pairs ({len(plan.pairs) - checks} votes and {checks} checks)"


def _clauses(plan: Plan) -> Sequence[Clause]:
    return clauses_of(plan.ablation, {arm.name: arm.versus for arm in plan.arms})


def serve(plan: Plan, vote_plan: VotePlan, shown: Shown, port: int) -> int:
    """Serve the page until Ctrl-C; then write the table again. Raises ConfigError if this judge is being served."""
    folder = votes_folder(plan)
    lock = FileLock(folder / f".plan-{vote_plan.id}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(f"judge={vote_plan.judge}: another call serves this page; stop it first") from None
    with lock:
        file = VoteFile(vote_plan, folder)
        before, total = len(file.answers), len(vote_plan.pairs)
        with JudgeServer(file, shown, port) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            try:
                thread.start()
                print(f"{vote_plan.judge}: {_asked(vote_plan)}, {before} answered; open\n\n  {server.url}\n")
                print("Ctrl-C ends it; every answer is kept, and the same command goes on", flush=True)
                thread.join()
            except KeyboardInterrupt:
                server.shutdown()
        print(f"\n{vote_plan.judge}: {len(file.answers)} of {total} pairs answered; kept in {file.path}")
    return write_again(plan) if len(file.answers) > before else 0


def write_again(plan: Plan) -> int:
    """Write the table with its page again, from files alone; exit status 1 if a file could not be written."""
    from experiments.engine.outcome.table import make_table
    from experiments.engine.outcome.table_files import write_pictures, write_table

    rows, unwritten = all_jobs(plan)[1], []
    try:
        result = make_table(plan, rows, {})
    except ValueError as error:
        print_line(f"the table was not written again: {error}")
        return 1
    write_table(plan, result, unwritten)
    write_pictures(plan, result, unwritten)
    for line in unwritten:
        print_line(line)
    print(f"{plan.folder}/index.html and table.md have the votes; pw judge name={plan.name} report=true says more")
    return 1 if unwritten else 0


main = Command(JudgeOptions, run, resume_hint="every answer is kept; the same command goes on")
