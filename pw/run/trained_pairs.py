"""`pw coverage`: which steps of an inference grid a step sampler trains, and which second halves of its targets (D5).

    pw coverage step_sampler=aligned [any override of conf/]

The grids have 2, 3, 4 and 5 steps; with `sampling.timesteps`, `sizes` or `grid=wan`, they are the parts of the run's.
"""

from __future__ import annotations

from dataclasses import dataclass

from pw.io.arguments import Command, ConfigError
from pw.io.console import console
from pw.method.coverage import Coverage, coverage
from pw.method.solver import inference_grid
from pw.run.build import Run, build

NUM_STEPS = (2, 3, 4, 5)  # Table 5


@dataclass(frozen=True)
class CoverageOptions:
    """Overrides of the run whose step sampler is reported."""

    overrides: tuple[str, ...] = ()


def reports(run: Run) -> list[Coverage]:
    """The coverage of each inference grid. Raises ConfigError if the objective has no step sampler."""
    sampler, sampling = run.objective.step_sampler, run.sampling
    if sampler is None:
        choice = run.config.choices["objective"]
        trained = "stride 0 alone"
        if run.objective.trains_strides:
            jumps_alone = run.objective.jumps_to_data == "only"
            trained = "jumps to data from every timestep" if jumps_alone else "every step between two nodes"
        raise ConfigError(f"objective={choice}: trains {trained}, so there is nothing to list; set objective=shortcut")
    if sampling.timesteps or sampling.sizes or sampling.grid == "wan":
        grids = [phase.grid for phase in run.phases()]
    else:
        grids = [inference_grid(n, run.schedule, sampling.shift, sampling.start) for n in NUM_STEPS]
    return [coverage(sampler, run.schedule, grid) for grid in grids]


def print_coverage(options: CoverageOptions) -> int:
    """Print a line per inference step. Raises ConfigError for a mistake in the overrides."""
    from rich.table import Table

    run = build(options.overrides)
    coverages = reports(run)
    table = Table("steps", "timestep", "stride", "trained", "nearest trained (timestep, stride)", box=None)
    for column in table.columns[:3]:
        column.justify = "right"
    for report in coverages:
        for pair in report.pairs:
            steps = str(len(report.pairs)) if pair is report.pairs[0] else ""
            answer = "[green]yes[/]" if pair.trained else "[red]no[/]"
            nearest = "({:.0f}, {:.0f})".format(*pair.nearest)
            table.add_row(steps, f"{pair.timestep:.0f}", f"{pair.stride:.0f}", answer, nearest)
        table.add_section()
    terminal, first = console(), coverages[0]
    choice = run.config.choices["step_sampler"]
    terminal.print(f"step_sampler={choice}, schedule.coordinate={run.schedule.coordinate}")
    terminal.print(table)
    terminal.print(
        f"second halves: {first.second_halves_trained} of {first.second_halves} trained,\n"
        f"{first.second_halves_grounded} more evaluated at stride 0, where flow matching trains every timestep"
    )
    return 0


main = Command(CoverageOptions, print_coverage)
