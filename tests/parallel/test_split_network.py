"""What the 5B network weighs in each of 64 processes."""

from __future__ import annotations

import pytest

from pw.run.build import Run, build


@pytest.fixture
def fake_processes():
    """`fake_processes(64)`: this process is the third of so many, which are not there."""
    import torch.distributed as dist
    from torch.testing._internal.distributed.fake_pg import FakeStore

    yield lambda count: dist.init_process_group("fake", store=FakeStore(), rank=2, world_size=count)
    dist.destroy_process_group()


GIB = 2**30


class TestTheFiveBillionNetwork:
    """On the meta device: its shapes and how they are split, without a byte of it."""

    @pytest.mark.parametrize(
        ("overrides", "gib"),
        [
            # weights, gradients, AdamW's two moments and the EMA, fp32: 5.084e9 * 5 * 4 bytes over 64 or 8
            (("trainer=fsdp", "trainer.nodes=8"), 1.48),
            (("trainer=hsdp", "trainer.nodes=8"), 11.84),
        ],
        ids=["fsdp", "hsdp"],
    )
    def test_is_split_over_64_processes(self, fake_processes, overrides: tuple[str, ...], gib: float) -> None:
        import torch
        from torch.distributed.fsdp import FSDPModule

        from pw.cost.training_cost import training_moments
        from pw.nn.backbone import Backbone
        from pw.parallel.sharded import local_rows, mesh_of, shard

        run: Run = build(["scale=2k", *overrides, "trainer.accelerator=cpu"])
        fake_processes(64)
        with torch.device("meta"):
            net = Backbone(run.backbone, run.injector)
        count = sum(parameter.numel() for parameter in net.parameters())
        assert count == 4_999_787_712 + 84_211_969  # Wan's, and those of injector and stride embedding
        shard(net, net.dit.blocks, mesh_of(run.trainer))
        # each block is gathered by itself, all else with the network
        assert sum(isinstance(module, FSDPModule) for module in net.modules()) == 30 + 1
        local = sum(local_rows(parameter)[0].numel() for parameter in net.parameters())
        assert local / (count / run.trainer.split) == pytest.approx(1, abs=2e-3)
        assert 5 * 4 * local / GIB == pytest.approx(gib, abs=0.005)
        planned = [p.bytes for p in training_moments(run, run.trainer.split)[-1].parts[:4]]
        assert 5 * 4 * local == pytest.approx(sum(planned), rel=2e-3)  # what `make plan` says
