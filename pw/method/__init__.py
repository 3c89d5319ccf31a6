"""Noise-span aligned shortcut training, sec. 3.4: pure mathematics on tensors, no network, no data, no I/O.

| module         | question                                          | paper                  |
|----------------|---------------------------------------------------|------------------------|
| `schedule`     | timestep <-> sigma under the shift; noise spans   | Eq. 7                  |
| `path`         | the state between data and noise, its velocity    | Eqs. 7.1-7.2           |
| `step_sampler` | which (timestep, stride) to train on              | Eqs. 5-6               |
| `weighting`    | the weight lambda of a step in the loss           | Eq. 8                  |
| `target`       | two short steps make one long one                 | Eqs. 4, 7.6            |
| `objective`    | what is minimised, and when                       | Eqs. 4, 7.3, 7.7, 7.8  |
| `mean_flow`    | a rival: the target from a derivative             | not in it              |
| `consistency_model` | a rival: neighbours jump to the same data    | not in it              |
| `solver`       | few-step integration, inference grids             | Eqs. 3, 7.5            |
| `coverage`     | which pairs of a grid were ever trained           | D5                     |

A `timestep` is N at pure noise and 0 at data; a `stride` is the length of a shortcut step towards data. torch is
imported at the first computation (`pw.io.lazy`), so that options are checked in milliseconds.
"""
