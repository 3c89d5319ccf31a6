"""Which of several processes this one is, as launch, torchrun or srun say it."""

from __future__ import annotations

import pytest

from pw.io.arguments import ConfigError
from pw.parallel.place import Place, check_launch, current_place
from pw.run.build import build
from pw.run.settings import Trainer


def trainer(*overrides: str) -> Trainer:
    return build(overrides).trainer


class TestAPlace:
    WANTED = Trainer("gpu", 4, 1, "sdpa", False, False, None, "fsdp", nodes=2)

    def test_is_nowhere_until_the_processes_are_started(self) -> None:
        assert current_place(trainer("trainer=fsdp", "trainer.devices=2"), {}) is None
        assert current_place(trainer(), {}) == Place(0, 1)
        assert current_place(trainer("trainer=fsdp", "trainer.devices=1"), {}) == Place(0, 1)

    def test_is_torchruns(self) -> None:
        given = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "GROUP_RANK": "1"}
        meeting = {"MASTER_ADDR": "there", "MASTER_PORT": "29500"}
        assert current_place(self.WANTED, {**given, **meeting}) == Place(6, 8, local_rank=2, node=1)

    def test_is_that_of_a_step_of_slurm_but_not_of_its_batch_script(self) -> None:
        script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
        assert current_place(self.WANTED, step) == Place(5, 8, local_rank=1, node=1)
        assert current_place(trainer("trainer=fsdp", "trainer.devices=2"), script) is None

    def test_among_another_number_than_the_trainers_is_refused(self) -> None:
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
        with pytest.raises(ConfigError, match=r"trainer\.devices=4 trainer\.nodes=2: that is 8 .* 2 were started"):
            current_place(self.WANTED, step)

    def test_on_several_machines_is_not_ours_to_start(self) -> None:
        assert current_place(self.WANTED, {}) is None
        with pytest.raises(ConfigError, match=r"trainer\.nodes=2: .*torchrun --nnodes 2 --nproc-per-node 4"):
            check_launch(self.WANTED)
        check_launch(trainer("trainer=fsdp"))
