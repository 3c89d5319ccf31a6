"""`pw power what=votes judges=3 clips=40`: how many votes show how large a preference, before anybody votes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pw.io.arguments import Command, ConfigError, number, option
from pw.io.console import console
from pw.io.files import writable_file, write_json

SHARES = (0.55, 0.6, 0.7, 0.8)
JUDGES = (1, 3, 5, 10, 20)


def _shares(text: str) -> tuple[float, ...]:
    read = number(50, 99, float, excluded=(50,))
    try:
        return tuple(read(part.removesuffix("%")) / 100 for part in text.split(","))
    except ValueError:
        raise ValueError("expected percentages above 50, up to 99, e.g. 55,60,70") from None


@dataclass(frozen=True)
class VotePowerOptions:
    """The options of `pw power what=votes`."""

    judges: int = option(3, "who vote", read=number(1, 1000))
    votes: int = option(60, "pairs of arms that each judge sees", read=number(2, 10_000))
    clips: int = option(40, "clips, of all seeds", read=number(2, 100_000))
    arms: int = option(2, "arms that are compared, all with all", read=number(2, 100))
    shares: tuple[float, ...] = option(SHARES, "percent of the votes for the better of two arms", read=_shares)
    ties: float = option(0.2, "assumed share of ties", read=number(0, 0.9, float))
    judge_sd: float = option(0.5, "assumed spread of judges' tastes, in log-odds", read=number(0, 5, float))
    clip_sd: float = option(0.5, "assumed spread of clips, in log-odds", read=number(0, 5, float))
    power: float = option(0.8, "the chance to show a true preference", read=number(0.06, 0.999, float))
    simulate: int = option(
        200, "simulated studies per share that check the formula; 0 for none", read=number(0, 10_000)
    )
    out: Path | None = option(None, "a JSON file for the answer", read=writable_file("out"))

    def __post_init__(self) -> None:
        if (most := 1 - self.ties / 2) <= max(self.shares):
            share = f"{100 * max(self.shares):g} %"
            raise ConfigError(
                f"ties={self.ties:g}: a tie is half a vote, so no arm gets {share} of them; below {100 * most:g} %"
            )


def plan_votes(options: VotePowerOptions) -> list[dict[str, Any]]:
    """Per share: power of the design by formula and by simulation, and the votes of each judge that are needed."""
    from benchmarks.stats.vote_power import VoteDesign, simulated_power

    keys = ("judges", "votes", "clips", "arms", "ties", "judge_sd", "clip_sd")
    design = VoteDesign(**{key: getattr(options, key) for key in keys})
    judges = sorted({*JUDGES, options.judges})
    return [
        {
            "share": share,
            "power": design.power(share),
            "simulated": simulated_power(design, share, options.simulate) if options.simulate else None,
            "needed": {n: replace(design, judges=n).votes_needed(share, options.power) for n in judges},
        }
        for share in options.shares
    ]


def run(options: VotePowerOptions) -> int:
    """Print the answer; exit status 0."""
    from rich import box
    from rich.table import Table

    answer, terminal = plan_votes(options), console()
    terminal.print(
        f"{options.judges} judges with {options.votes} votes each on {options.clips} clips, {options.arms} arms, by "
        f"the test of the table (D106). ASSUMED: {100 * options.ties:g} % ties, and that judges differ by "
        f"{options.judge_sd:g} and clips by {options.clip_sd:g} in log-odds (ties=, judge_sd=, clip_sd=)"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for header in ("better arm's share", "power", "simulated"):
        table.add_column(header, justify="right", min_width=max(map(len, header.split())))
    for n in answer[0]["needed"]:
        table.add_column(f"{n} judge{'s' * (n > 1)}", justify="right")
    for row in answer:
        simulated = "" if row["simulated"] is None else f"{100 * row['simulated']:.0f} %"
        needed = ("–" if n is None else f"{n:,}" for n in row["needed"].values())
        table.add_row(f"{100 * row['share']:g} %", f"{100 * row['power']:.0f} %", simulated, *needed)
    terminal.print(table)
    terminal.print(
        f"left: the chance to show that share, by formula and in {options.simulate} simulated studies; right: votes of "
        f"each judge for {100 * options.power:g} % power; – no number is enough, as judges and clips differ by more: "
        "ask more judges, or show more clips. One judge speaks for no other."
    )
    if options.out is not None:
        write_json(options.out, answer)
        terminal.print(f"\n{options.out}", markup=False)
    return 0


main = Command(VotePowerOptions, run)
