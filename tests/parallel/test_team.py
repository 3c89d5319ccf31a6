"""Which of several processes this one is, and how the clips of an update are shared by them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_latents import write_latents

from pw.io.arguments import ConfigError
from pw.parallel.team import Place, Share, check_launch, current_place
from pw.run.build import build
from pw.run.settings import Trainer
from pw.train.batches import clips
from pw.train.preflight import check_share

CPU = ("trainer.accelerator=cpu", "trainer.threads=1")


def shares(processes: int, accumulate: int, batch_size: int) -> list[Share]:
    return [Share(rank, processes, accumulate, batch_size) for rank in range(processes)]


def trainer(*overrides: str) -> Trainer:
    return build(overrides).trainer


class TestAPlace:
    TRAINER = Trainer("gpu", 4, 1, "sdpa", False, False, None, "fsdp", nodes=2)

    def test_is_nowhere_until_the_processes_are_started(self) -> None:
        assert current_place(trainer("trainer=fsdp", "trainer.devices=2"), {}) is None
        assert current_place(trainer(), {}) == Place(0, 1)
        assert current_place(trainer("trainer=fsdp", "trainer.devices=1"), {}) == Place(0, 1)

    def test_is_torchruns(self) -> None:
        torchrun = {"RANK": "6", "WORLD_SIZE": "8", "LOCAL_RANK": "2", "GROUP_RANK": "1"}
        address = {"MASTER_ADDR": "there", "MASTER_PORT": "29500"}
        assert current_place(self.TRAINER, {**torchrun, **address}) == Place(6, 8, local_rank=2, node=1)

    def test_is_that_of_a_step_of_slurm_but_not_of_its_batch_script(self) -> None:
        script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
        step = {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NODEID": "1"}
        assert current_place(self.TRAINER, step) == Place(5, 8, local_rank=1, node=1)
        assert current_place(trainer("trainer=fsdp", "trainer.devices=2"), script) is None

    def test_among_another_number_than_the_trainers_is_refused(self) -> None:
        step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
        with pytest.raises(ConfigError, match=r"trainer\.devices=4 trainer\.nodes=2: that is 8 .* 2 were started"):
            current_place(self.TRAINER, step)

    def test_on_several_machines_is_not_ours_to_start(self) -> None:
        assert current_place(self.TRAINER, {}) is None
        with pytest.raises(ConfigError, match=r"trainer\.nodes=2: .*torchrun --nnodes 2 --nproc-per-node 4"):
            check_launch(self.TRAINER)
        check_launch(trainer("trainer=fsdp"))


class TestAShare:
    @given(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6), st.integers(0, 3))
    def test_is_dealt_so_that_every_part_of_an_update_is_done_once(
        self, processes: int, accumulate: int, batch_size: int, update: int
    ) -> None:
        try:
            dealt = shares(processes, accumulate, batch_size)
        except ConfigError:
            divisors = [n for n in range(1, accumulate + 1) if accumulate % n == 0]
            assert not any(batch_size * n % processes == 0 and processes % n == 0 for n in divisors)
            return
        computed = Counter(
            (share.index(update * share.micro_batches + turn), position)
            for share in dealt
            for turn in range(share.micro_batches)
            for position in share.of_batch(range(batch_size))  # ty: ignore[invalid-argument-type]
        )
        micro_batches = range(update * accumulate, (update + 1) * accumulate)
        assert computed == Counter((index, position) for index in micro_batches for position in range(batch_size))
        assert {(share.micro_batches, share.clips) for share in dealt} == {(dealt[0].micro_batches, dealt[0].clips)}

    def test_is_of_whole_micro_batches_as_far_as_there_are_any(self) -> None:
        two = Share(rank=3, processes=4, accumulate=2, batch_size=6)
        assert (two.groups, two.parts, two.micro_batches, two.clips) == (2, 2, 1, 3)
        assert (two.index(0), two.index(5), two.part) == (1, 11, 1)

    def test_that_cannot_be_equal_is_refused_with_what_would_do(self) -> None:
        with pytest.raises(ConfigError, match=r"is 3: train\.batch_size=4 .*train\.accumulate=1 .* use 2, or"):
            Share(0, 3, 1, 4)
        with pytest.raises(ConfigError, match=r"is 16: .* use 8, or train\.accumulate=16"):
            Share(0, 16, 8, 1)

    @pytest.mark.parametrize(("processes", "accumulate", "batch_size"), [(1, 1, 4), (2, 1, 4), (4, 2, 2), (4, 4, 1)])
    def test_of_encoded_clips_gives_every_clip_once_per_epoch(
        self, tmp_path: Path, processes: int, accumulate: int, batch_size: int
    ) -> None:
        import torch

        folder = write_latents(tmp_path, build(["scale=proxy"]), 12)
        sizes = [f"train.batch_size={batch_size}", f"train.accumulate={accumulate}"]
        run = build(["scale=proxy", "data=latents", f"data.urls={folder}", *sizes])
        dealt = shares(processes, accumulate, batch_size)
        updates = 12 // (accumulate * batch_size)
        for epoch in range(2):
            turns = [
                (share, turn)
                for share in dealt
                for turn in range(epoch * updates * share.micro_batches, (epoch + 1) * updates * share.micro_batches)
            ]
            values = torch.cat([clips(run, share.index(turn), share).latent[:, 0, 0, 0, 0] for share, turn in turns])
            assert sorted(values.tolist()) == list(range(12))
        # and a part is a part of the batch that one process would see, anchors and captions too
        full_batch = run.source.batch(run.seed, 1, batch_size)
        parts = [clips(run, 1, share) for share in dealt if share.index(1 // share.groups) == 1]
        assert torch.equal(torch.cat([batch.latent for batch in parts]), full_batch.latent)
        assert torch.equal(torch.cat([batch.anchor for batch in parts]), full_batch.anchor)
        assert torch.equal(torch.cat([batch.text for batch in parts]), full_batch.text)


class TestTheRandomnessOfAPart:
    @pytest.mark.parametrize("degradation", ["default", "none", "flawed"])
    def test_is_a_part_of_the_whole_batchs(self, degradation: str) -> None:
        import torch

        from pw.stages.stage import SeededDraws

        run = build([f"degradation={degradation}"])
        latent = torch.randn(4, 2, 2, 3, 3)
        single = SeededDraws(5, 7)
        two = [SeededDraws(5, 7, Share(rank, 2, 1, 4)) for rank in (0, 1)]
        both = lambda drawn: torch.cat(list(drawn))  # noqa: E731
        assert torch.equal(both(draws.noise(latent[:2]) for draws in two), single.noise(latent))
        assert torch.equal(both(draws.uniform(2) for draws in two), single.uniform(4))
        assert torch.equal(both(draws.dropout_masks(2, 0.5)[0] for draws in two), single.dropout_masks(4, 0.5)[0])
        perturbed = both(
            draws.perturb(run.degradation, part, draws.degrade())
            for draws, part in zip(two, latent.split(2), strict=True)
        )
        assert torch.equal(perturbed, single.perturb(run.degradation, latent, single.degrade()))
        assert torch.equal(perturbed, run.degradation.perturb(latent, single.degrade()))


class TestTheTrainer:
    def test_of_another_kind_changes_no_signature(self) -> None:
        alone = build([])
        for name in ("ddp", "fsdp", "hsdp"):
            run = build([f"trainer={name}", *CPU])
            assert run.trainer.processes == 8
            assert (run.training_signature, run.signature) == (alone.training_signature, alone.signature)

    def test_splits_a_copy_over_all_or_over_a_machine(self) -> None:
        split = {
            name: trainer(f"trainer={name}", "trainer.devices=4", "trainer.nodes=2") for name in ("ddp", "fsdp", "hsdp")
        }
        assert {name: (t.copies, t.split) for name, t in split.items()} == {
            "ddp": (8, 1),
            "fsdp": (1, 8),
            "hsdp": (2, 4),
        }
        assert trainer("trainer=hsdp", "trainer.devices=4", "trainer.shards=2").copies == 2

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("trainer=hsdp trainer.shards=3", ["trainer.shards=3", "8 processes", "trainer.shards=null"]),
            ("trainer=fsdp trainer.nodes=0", ["trainer.nodes=0", "at least 1"]),
            ("trainer.devices=2", ["trainer.devices=2", "one device", "trainer=ddp, fsdp or hsdp"]),
            ("trainer=ddp trainer.shards=2", ["trainer.shards=2", "trainer=hsdp"]),
        ],
    )
    def test_that_cannot_be_is_told_by_key(self, line: str, message: list[str]) -> None:
        with pytest.raises(ConfigError) as error:
            build(line.split())
        assert not [part for part in message if part not in str(error.value)], error.value

    def test_that_cuts_batches_refuses_a_weighting_by_the_batch(self) -> None:
        overrides = ["trainer=ddp", *CPU, "trainer.devices=2", "weighting.normalise=batch"]
        with pytest.raises(ConfigError, match=r"weighting\.normalise=batch.*weighting\.normalise=expected"):
            check_share(build(overrides))
        check_share(build([*overrides, "train.accumulate=2"]))  # a whole batch each
