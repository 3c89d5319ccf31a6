"""`pw system`: make, or register, the videos of a system of the paper's tables.

    pw system                                   the systems there are
    pw system name=NAME prompts=FILE [key=value …]

What a system needs beside prompts depends on its kind: `videos=DIR` registers videos that are there, PixelWizard takes
whatever else `pw generate` takes (`hires=… anchor=…`), a program of its own `checkout=DIR`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.systems import GenerationError, Setting, System, find, load, names, read_card
from benchmarks.systems.generation_call import SystemOptions, checked_call
from benchmarks.systems.gpu_processes import spread_over_gpus
from benchmarks.systems.jobs import make_jobs, read_prompts
from benchmarks.systems.register import register
from benchmarks.systems.system_videos import commands, generate, prepare_folder
from pw.io.arguments import Command, ConfigError, written
from pw.io.paths import OUTPUTS


def run(options: SystemOptions) -> int:
    """Exit status: 0 done, 1 some videos could not be made."""
    if options == SystemOptions():
        print("\n".join(_list([load(name) for name in names()])))
        return 0
    if options.videos is not None:
        return _register(options)
    call = checked_call(options)
    if options.dry_run:
        print("\n".join(commands(call)))
        return 0
    if options.gpus > 1 and not call.is_split:
        if not call.is_fsdp:
            prepare_folder(call)
        return spread_over_gpus(call)
    try:
        failures = generate(call, lambda text: print(text, file=sys.stderr, flush=True))
    except GenerationError as error:
        failures = [str(error)]
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _register(options: SystemOptions) -> int:
    assert options.videos is not None
    allowed = dict.fromkeys(("name", "videos", "out", "prompts", "seeds"))
    rest = replace(options, **{key: getattr(SystemOptions(), key) for key in allowed})
    if others := [word.partition("=")[0] for word in written(rest)]:
        raise ConfigError(f"{', '.join(sorted(others))}: with videos=DIR there are name, out, prompts and seeds")
    card = find(options.name)
    system = read_card(card)
    jobs = None if options.prompts is None else make_jobs(read_prompts(options.prompts), options.seeds)
    out = (options.out or OUTPUTS / "systems" / system.name).absolute()
    registered = register(card, system, options.videos, out, jobs)
    print(f"{len(registered.present)} videos of {system.title} are registered in {out}")
    for file, why in registered.wrong:
        print(f"left out: {options.videos / file}: {why.rpartition(f'{file}: ')[2]}")
    if any(", asked " in why for _, why in registered.wrong):
        print(f"the card of {system.title}: {system.setting}")
    for what, stems in (("missing", registered.missing), ("not asked for", registered.unasked)):
        if stems:
            print(f"{what}: {len(stems)}: {', '.join(stems[:5])}{' …' if len(stems) > 5 else ''}")
    return 1 if registered.wrong or registered.missing else 0


main = Command(SystemOptions, run, resumes="what is finished is kept, the same command goes on from here")


def _size(setting: Setting) -> tuple[str, str]:
    width, height, frames, fps = (
        "?" if value is None else f"{value:g}" for value in (setting.width, setting.height, setting.frames, setting.fps)
    )
    return f"{width}x{height}", f"{frames}@{fps}"


def _list(systems: Sequence[System]) -> list[str]:
    head = ("name", "kind", "size", "frames@fps", "steps", "licence", "rows")
    rows = [
        (
            *(s.name, s.kind, *_size(s.setting)),
            "–" if s.setting.steps is None else str(s.setting.steps),
            f"{s.licence.name}{' (must be accepted)' if s.licence.restricted else ''}",
            " ".join(s.rows) or "–",
        )
        for s in systems
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    return ["  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in [head, *rows]]
