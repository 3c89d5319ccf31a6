"""`pw ladder name=ansc`: an ablation at tiny, then at small, then at proxy. Begin with `run`.

    pw ladder name=ansc scales=tiny,small small.data.urls=data/clips dry_run=true
    pw ladder name=ansc seeds=8 small.seeds=3 arms=baseline,full

A word that begins with a scale (`small.seeds=3`) is of that scale alone. The others are of all scales: options of `pw
ablation`, or overrides of `conf/`. Each scale is an ordinary ablation, whose trainings, clips and scores are in
`outputs/` as ever; its table is in `outputs/ladder-ansc/<scale>/`, and the ladder's own in `outputs/ladder-ansc/`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.stats.comparison import Scores
from benchmarks.stats.sequential import FIRST
from experiments.engine.ablation import AblationOptions, Clause, load, names
from experiments.engine.job import all_jobs, jobs_to_run
from experiments.engine.ladder.claim_looks import ClaimAnswer, climb
from experiments.engine.ladder.ladder_report import RungOutcome, answer_words, stops, write_ladder
from experiments.engine.outcome.verdict import clauses_of
from experiments.engine.plan import Plan, parse
from experiments.engine.pool import FORK_SECONDS, Pool
from experiments.engine.queue.launcher import Local, Submitit
from experiments.engine.run_ablation import RESUME, finish, prepare, run_plan
from pw.cost.generation_cost import stages_of
from pw.cost.rates import CARDS, is_card, parse_gpus
from pw.cost.training_cost import training_cost
from pw.cost.verdicts import judge_generation, judge_training
from pw.data.shard_index import find_shards
from pw.io.arguments import Command, ConfigError, did_you_mean, option, to_words
from pw.io.command_line import command_line
from pw.io.console import console
from pw.io.host import gpu_name, may_have_gpu
from pw.io.paths import OUTPUTS
from pw.io.progress import duration
from pw.run.compose import Config, compose_run, groups, override_key, swept_values
from pw.train.loop import outputs_folder
from pw.train.preflight import check_device

SCALES = ("tiny", "small", "proxy")
NOTE = (
    "{} ran {} of {} seeds per arm: `pw ladder` stopped what was decided, so the intervals and p of this table, for a "
    "number of seeds fixed beforehand, are too narrow; its own verdicts are in ladder.md"
)


@dataclass(frozen=True)
class LadderOptions:
    """The options of `pw ladder`."""

    name: str = option(help="the ablation; `pw ablations` lists them", values=names)
    scales: tuple[str, ...] = option((), f"from cheap to dear; by default those of {','.join(SCALES)} that can run")
    dry_run: bool = option(False, "print the plan without running it")
    outputs: Path = option(OUTPUTS, "where results go", read=outputs_folder)
    overrides: tuple[str, ...] = option((), "words of pw ablation; small.KEY=… is of that scale alone")


@dataclass(frozen=True)
class Rung:
    """An ablation at one scale, with all its seeds; seconds: (at the first look, if all seeds run)."""

    scale: str
    plan: Plan
    launcher: Local | Submitit
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def clauses(self) -> list[Clause]:
        """The clauses of the claim that are about planned arms alone."""
        arms = {arm.name: arm.versus for arm in self.plan.arms}
        every = clauses_of(self.plan.ablation, arms)
        return [clause for clause in every if all({pair.arm, pair.other} <= arms.keys() for pair in clause.pairs())]

    def part(self, counts: Mapping[str, int]) -> Plan:
        """The plan of the first seeds of each arm. counts: arm -> their number"""
        plan, most = self.plan, max(counts.values())
        seeds = plan.options.seeds
        arms = tuple(
            replace(arm, runs={seed: arm.runs[seed] for seed in seeds[: counts[arm.name]]}) for arm in plan.arms
        )
        probes = tuple(probe for probe in plan.probes if probe.seed in seeds[: counts[probe.arm]])
        ran = "-".join(map(str, sorted({min(counts.values()), most})))
        note = NOTE.format(self.scale, ran, len(seeds)) if min(counts.values()) < len(seeds) else ""
        options = replace(plan.options, seeds=seeds[:most])
        return replace(plan, options=options, arms=arms, probes=probes, table_note=note)


class RungStopped(Exception):
    """A signal, or a failed run, with the exit status."""

    def __init__(self, status: int) -> None:
        self.status = status


def run(options: LadderOptions) -> int:
    """Print the plan, run it scale by scale, and write what came out; exit status as of `pw ablation`.

    Raises ConfigError.
    """
    terminal, (rungs, left_out) = console(), plan_rungs(options)
    notes = [f"{scale} is left out: {reason}" for scale, reason in left_out.items()]
    _print_plan(terminal, options, rungs, notes)
    if options.dry_run:
        return 0
    if len(rungs) < (2 if options.scales else 1):
        here = ", ".join(rung.scale for rung in rungs) or "none"
        raise ConfigError(f"a ladder compares two scales, of these {here} can run here; {'; '.join(notes)}")
    for rung in rungs:
        if isinstance(rung.launcher, Local):
            for arm in rung.plan.arms:
                check_device(arm.first)
    outcomes: list[RungOutcome] = []
    status = 0
    for rung in rungs:
        try:
            outcome, unwritten = _climb(rung, terminal)
        except RungStopped as stop:
            if stop.status == 1:
                terminal.print(f"{rung.scale}: a run failed; call it again when that is mended, {RESUME}", markup=False)
            return stop.status
        outcomes.append(outcome)
        status = max(status, unwritten)
    folder = options.outputs / _place(options.name)
    reach = f"From {rungs[0].scale} to {rungs[-1].scale}" if len(rungs) > 1 else f"At {rungs[0].scale}"
    title = f"{load(options.name)[1].title} {reach}"
    found = write_ladder(folder, title, options.name, outcomes, notes, command_line("ladder", *to_words(options)))
    terminal.print()
    for line in (*found, *stops(outcomes), f"{folder}/index.html, ladder.{{md,json}}"):
        terminal.print(str(line), markup=False)
    return status


def plan_rungs(options: LadderOptions) -> tuple[list[Rung], dict[str, str]]:
    """The scales that can run, and why others cannot. Raises ConfigError."""
    load(options.name)
    known = groups()["scale"]
    scales = options.scales or tuple(scale for scale in SCALES if scale in known)
    for scale in scales:
        if scale not in known:
            raise ConfigError(f"scales={scale}: {did_you_mean(scale, known)}there are {', '.join(known)}")
    if options.scales and not 1 < len(scales) == len(set(scales)):
        raise ConfigError(f"scales={','.join(scales)}: a ladder compares two or more; `pw ablation` runs one")
    words = _words(options, scales, known)
    configs = {scale: _config(scale, words[scale]) for scale in scales}
    _check_order(configs)
    rungs: list[Rung] = []
    left_out: dict[str, str] = {}
    for scale in scales:
        try:
            if not (reason := _obstacle(scale, configs[scale], words[scale])):
                rung = _rung(options, scale, words[scale])
                cards = [card for card in CARDS if is_card(gpu_name(), card)]
                is_here = rung.plan.arms[0].first.trainer.accelerator == "gpu" and isinstance(rung.launcher, Local)
                reason = misfit(rung.plan, cards[0]) if is_here and cards else ""
                rungs += [] if reason else [rung]
        except ConfigError as error:
            reason = str(error)
            is_of_data = "data." in reason or "data=" in reason
            has_own = any(word.startswith(f"{scale}.") for word in options.overrides)
            if has_own or not rungs or not (is_of_data or not options.scales):
                raise error.with_prefix(f"{scale}: ") from error
            reason += f"; for this scale alone: {scale}.data.urls=DIR" if is_of_data else ""
        if reason:
            left_out[scale] = reason
    return rungs, left_out


def _config(scale: str, words: Sequence[str]) -> Config:
    """The configuration of a scale, with what is chosen of its data and devices: composed in a tenth of a second."""
    chosen = [word for word in words if override_key(word).split(".")[0] in ("data", "trainer", "scale")]
    try:
        return compose_run([f"scale={scale}", *(word for word in chosen if not swept_values(word))])
    except ConfigError as error:
        raise error.with_prefix(f"{scale}: ") from error


def _check_order(configs: Mapping[str, Config]) -> None:
    """Check that each scale has more pixels a clip than the one before. Raises ConfigError."""
    scales = {scale: config.values["scale"] for scale, config in configs.items()}
    sizes = {scale: of["frames"] * of["height"] * of["width"] for scale, of in scales.items()}
    ordered = sorted(sizes, key=lambda scale: sizes[scale])
    if [*scales] != ordered:
        raise ConfigError(f"scales={','.join(scales)}: from cheap to dear; that is scales={','.join(ordered)}")


def _words(options: LadderOptions, scales: Sequence[str], known: Sequence[str]) -> dict[str, list[str]]:
    """Scale -> its words: those of all scales, and its own in their place. Raises ConfigError for other words."""
    shared: list[str] = []
    own: dict[str, list[str]] = {scale: [] for scale in scales}
    for word in options.overrides:
        scale, dot, rest = word.partition(".")
        key = override_key(word)
        if key == "scale":
            raise ConfigError(f"{word}: a ladder takes scales={','.join(SCALES)}")
        if key in ("fresh", "code"):
            raise ConfigError(f"{word}: a ladder has no {key}; `pw ablation name={options.name} {word}` has")
        if dot and scale in known and scale not in own:
            raise ConfigError(f"{word}: scales={','.join(scales)} has no {scale}")
        (own[scale] if dot and scale in own else shared).append(rest if dot and scale in own else word)
    keys = {scale: {override_key(word) for word in words} for scale, words in own.items()}
    return {scale: [*(w for w in shared if override_key(w) not in keys[scale]), *own[scale]] for scale in scales}


def _place(name: str) -> str:
    return f"ladder-{name}"


def _rung(options: LadderOptions, scale: str, words: Sequence[str]) -> Rung:
    ablation_words = [f"name={options.name}", f"outputs={options.outputs}", f"scale={scale}", *words]
    parsed: AblationOptions = replace(parse(ablation_words), dry_run=options.dry_run)
    if len(parsed.seeds) < FIRST:
        raise ConfigError(f"seeds={len(parsed.seeds)}: a ladder tests after every seed from the second on; seeds=2")
    plan, launcher = prepare(parsed)
    rung = Rung(scale, replace(plan, place=f"{_place(options.name)}/{scale}"), launcher)
    if not rung.clauses:
        raise ConfigError(f"{options.name}: no claim is about {', '.join(arm.name for arm in plan.arms)} alone")
    first, last = (_seconds(rung, n) for n in (FIRST, len(parsed.seeds)))
    return replace(rung, seconds=(first, last))


def _seconds(rung: Rung, seeds: int) -> float:
    """Estimated time of the first seeds of all arms, without what is there already."""
    part = rung.part({arm.name: seeds for arm in rung.plan.arms})
    todo = jobs_to_run(all_jobs(part)[0], part.options.outputs)
    if not todo:
        return 0.0
    on_gpu = any(arm.first.trainer.accelerator == "gpu" for arm in part.arms)
    pool = Pool(part.options.outputs, part.options.workers or on_gpu, lambda *_: None)
    pool.waiting = todo
    return pool.seconds_left() + FORK_SECONDS


def _obstacle(scale: str, config: Config, words: Sequence[str]) -> str:
    """What a scale lacks here; empty if nothing. Whether torch can use the GPU is asked when the ladder runs."""
    is_queued = any(word.startswith("launcher=") and word != "launcher=local" for word in words)
    lacks = []
    if config.values["trainer"]["accelerator"] == "gpu" and not (is_queued or may_have_gpu()):
        lacks.append("no GPU here")
    has_urls = any(override_key(word) == "data.urls" for word in words)
    if config.choices["data"] == "none":
        lacks.append(f"data=none: name its clips by {scale}.data=latents {scale}.data.urls=DIR")
    elif config.choices["data"] == "shards" and not has_urls and not _is_there(config["data"]["urls"]):
        made = f"`pw data path=DIR scale={scale}` cuts them from your videos"
        lacks.append(f"no clips: {made}, then {scale}.data.urls=data/shards-{scale}")
    return "; ".join(lacks)


def _is_there(urls: Any) -> bool:
    try:
        return bool(find_shards(urls))
    except (OSError, ValueError):
        return False


def misfit(plan: Plan, card: str) -> str:
    """Why the arms of a plan do not fit GPUs of a card, by `pw plan`; empty if they do. card: a key of `CARDS`"""
    gpus = parse_gpus(f"{plan.arms[0].first.trainer.devices}x{card}")
    for run in (arm.first for arm in plan.arms):
        training = judge_training(run, training_cost(run, gpus.count), gpus)
        sampling = judge_generation(stages_of(run), gpus.memory, card, None, gpus.count)
        if not (training.fits and sampling.fits):
            return sampling.line if training.fits else training.line
    return ""


def _climb(rung: Rung, terminal: Any) -> tuple[RungOutcome, int]:
    """(What came out at a scale, 1 if some file was not written). Raises RungStopped."""
    plan, start_time = rung.plan, time.perf_counter()
    arms = [arm.name for arm in plan.arms]

    def scores_of(counts: Mapping[str, int]) -> Scores:
        from experiments.engine.outcome.table import scores_of_rows

        part = rung.part(counts)
        if status := run_plan(part, rung.launcher, is_part=True):
            raise RungStopped(status)
        scores, _ = scores_of_rows(all_jobs(part)[1], {})
        return {arm: scores.get(arm, {}) for arm in arms}

    def show(answers: Sequence[ClaimAnswer], counts: Mapping[str, int]) -> None:
        n = max(counts.values())
        terminal.print(f"{rung.scale}, after {n} of {len(plan.options.seeds)} seeds:", style="bold", markup=False)
        for answer in answers:
            if answer.seeds == n:
                terminal.print(f"  {answer_words(answer)}: {answer.clause}", markup=False)
        if stopped := [arm for arm, count in counts.items() if count < n]:
            terminal.print(f"  stopped before: {', '.join(stopped)}", markup=False)

    answers, counts = climb(rung.clauses, arms, plan.ablation.primary, plan.options.seeds, scores_of, show)
    part = rung.part(counts)
    unwritten = finish(part, all_jobs(part)[1], {}, terminal, start_time, is_shown=False)
    return RungOutcome(rung.scale, answers, counts, plan.options.seeds, str(plan.folder)), unwritten


def _print_plan(terminal: Any, options: LadderOptions, rungs: Sequence[Rung], notes: Sequence[str]) -> None:
    terminal.print(f"{options.name}: {load(options.name)[1].title}", style="bold", markup=False)
    for rung in rungs:
        first, scale = rung.plan.arms[0].first, rung.plan.arms[0].first.scale
        seeds, (least, most) = rung.plan.options.seeds, rung.seconds
        times = (
            duration(most) if f"{duration(least)}" == f"{duration(most)}" else f"{duration(least)} to {duration(most)}"
        )
        size = f"{scale.width} x {scale.height} px, {scale.frames} frames, data={first.config.choices['data']}"
        order = ", ".join(map(str, seeds))
        line = (
            f"{rung.scale}: {size}; {len(rung.plan.arms)} arms, seeds {order}, at least {FIRST} of them; about {times}"
        )
        terminal.print(line if most else f"{line.rpartition(';')[0]}; all of it is there", markup=False)
        if options.dry_run:
            words = [*rung.plan.options.words(), f"outputs={options.outputs}"]
            terminal.print(f"  {command_line('ablation', *words)}", markup=False, soft_wrap=True)
    for note in notes:
        terminal.print(note, markup=False)


main = Command(LadderOptions, run, resume_hint=RESUME)
