"""`pw power ablation=ansc`: the smallest difference that n prompts and m seeds show, before anything is trained.

**The test that is planned for** is the table's (`benchmarks.stats.comparison`): the paired t over the seeds'
differences, two-sided; the primary metric alone at alpha, the others by Holm behind it. The others are planned with
Holm's first step, alpha over their number: what passes it passes whatever the others do, where the primary is shown
too. The paper names no primary metric: of its columns, Holm over all.

**The model.** A difference of two arms on prompt v in seed s is delta + S_s + e_sv, so its mean over n prompts and m
seeds has the variance

    seed^2 / m + video^2 / (n m)

and seeds buy what prompts cannot: below seed / sqrt(m) no number of prompts goes. For the primary metric the answer
says what buys most, twice the prompts or two more seeds, and whether a control variate could pay. A metric of the whole
set has no values per prompt: for the primary metric the share of the prompts comes from the jackknife over its small
clips (`benchmarks.stats.resampling`), for others it is not known. With one seed there is no spread between trainings:
that row is about two given checkpoints over prompts (df = n - 1), as the paper's own tables are, not about the method.

**The spreads** are measured where scores of this ablation are in `outputs/scores`; otherwise they are assumed, and the
answer says so.
"""

from __future__ import annotations

from experiments.engine.power_analysis.power_options import PowerOptions
from experiments.engine.power_analysis.power_plan import plan_power
from experiments.engine.power_analysis.power_report import as_json, rendered
from experiments.engine.terminal import console
from pw.io.arguments import Command
from pw.io.files import write_json


def run(options: PowerOptions) -> int:
    """Print the answer; exit status 0. Raises ConfigError for what cannot be planned."""
    answer = plan_power(options)
    terminal = console()
    for part in rendered(answer):
        terminal.print(part)
    if options.out is not None:
        write_json(options.out, as_json(answer))
        terminal.print(f"\n{options.out}")
    return 0


main = Command(PowerOptions, run)
