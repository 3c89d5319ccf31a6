"""Make, or register, the videos of a system of the paper's tables.

    pw system                                   the systems there are
    pw system name=NAME prompts=FILE [key=value …]

Keys:

    name=NAME        a row of that list, or a card of your own: a .yaml
    prompts=FILE     .txt, a prompt a line; or .jsonl of {"text", "long"?, "id"?}: made from long, filed under text
    seeds=1          videos for each prompt; the seed of the noise is 0, 1, …
    out=DIR          outputs/systems/<name> by default; a video that is there, or that another call is making, is not
                     made again
    limit=N          only the first N;  dry_run=true: say what would be run;  accept_licence=true
    width= height= frames= fps= steps= guidance= shift=    instead of the native setting: noted as a deviation
    gpus=N           a process for each GPU, each with its share; shard=i/N: one share, for a cluster's jobs

and by the system's kind:

    diffusers        weights=DIR|repository device=auto|cpu|cuda offload=true lossless=true quality=10 (x264's crf)
                     trainer=fsdp: with gpus=N one model over all GPUs, where it does not fit into one
    pixelwizard      weights=DIR hires=… anchor=… and whatever else pw.generate.pipeline takes
                     trainer=fsdp: with gpus=N each network is split over all GPUs, where it does not fit into one
    command          checkout=DIR python=…/bin/python weights=PATH timeout=SECONDS; inputs=DIR: the videos to enlarge
    videos           videos=DIR: register what is there (any system); nothing is copied
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.systems import GenerationError, Setting, System, find, load, names, read_card
from benchmarks.systems.jobs import make_jobs, read_prompts
from benchmarks.systems.register import register
from benchmarks.systems.run import commands, generate, parse, spread
from pw.io.paths import OUTPUTS


def main(words: Sequence[str]) -> int:
    """Exit status: 0 done, 1 some videos could not be made, 2 a mistake in the call, 130 interrupted."""
    try:
        return _main(words)
    except GenerationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; what is finished is kept, the same command goes on from here", file=sys.stderr)
        return 130


def _main(words: Sequence[str]) -> int:
    if not words:
        print("\n".join(_list([load(name) for name in names()])))
        return 0
    if "--help" in words or "-h" in words:
        print(__doc__)
        return 0
    if any(word.startswith("videos=") for word in words):
        return _register(words)
    call = parse(words)
    if call.truth("dry_run"):
        print("\n".join(commands(call)))
        return 0
    if call.gpus > 1 and not call.is_split:
        return spread(call)
    failures = generate(call, lambda text: print(text, file=sys.stderr, flush=True))
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _register(words: Sequence[str]) -> int:
    given = dict(word.partition("=")[::2] for word in words)
    if unknown := given.keys() - {"name", "videos", "out", "prompts", "seeds"}:
        raise ValueError(f"{', '.join(sorted(unknown))}: with videos=DIR there are name, out, prompts and seeds")
    card = find(given.get("name", ""))
    system = read_card(card)
    seeds = given.get("seeds", "1")
    if not seeds.isdecimal() or not int(seeds):
        raise ValueError(f"seeds={seeds}: a whole number from 1")
    jobs = make_jobs(read_prompts(Path(given["prompts"]).expanduser()), int(seeds)) if "prompts" in given else None
    if not given["videos"]:
        raise ValueError("videos=: wants the folder of the videos; name=SYSTEM alone makes them")
    out = Path(given.get("out") or OUTPUTS / "systems" / system.name).expanduser().absolute()
    found = register(card, system, Path(given["videos"]).expanduser(), out, jobs)
    print(f"{len(found.present)} videos of {system.title} are registered in {out}")
    for file, why in found.wrong:
        print(f"left out: {Path(given['videos']).expanduser() / file}: {why.rpartition(f'{file}: ')[2]}")
    if any(", asked " in why for _, why in found.wrong):
        print(f"the card of {system.title}: {system.setting}")
    for what, stems in (("missing", found.missing), ("not asked for", found.unasked)):
        if stems:
            print(f"{what}: {len(stems)}: {', '.join(stems[:5])}{' …' if len(stems) > 5 else ''}")
    return 1 if found.wrong or found.missing else 0


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
