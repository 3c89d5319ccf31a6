"""Checkpoints written in the background, and which clips can be computed by several processes together.

That trainings by several processes equal one, and that their checkpoints are resumed, is in `stages/test_together.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.plugins import MixedPrecision, Precision
from small_processes import train_together

from pw.io.arguments import ConfigError
from pw.parallel.sharded import Shards, check_checkpoint, read_rest, snapshot
from pw.parallel.strategy import ShardedStrategy, check_precision
from pw.parallel.team import Place
from pw.run.build import build

TWO = ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2", "train.accumulate=2")
ATTENTION = ("dense", "window", "topk", "anchor")


@pytest.fixture
def single_process():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Place(0, 1)
    dist.destroy_process_group()


def test_a_checkpoint_is_of_the_moment_at_which_it_was_asked_for(single_process: Place, tmp_path: Path) -> None:
    """Weights and optimiser are changed while it waits to be written, and training goes on meanwhile."""
    strategy, disk = ShardedStrategy(single_process), threading.Event()
    strategy.writer.submit(disk.wait)  # a disk that is slow
    weight, moment, counts = torch.ones(3, 2), torch.full((3, 2), 2.0), {"total": 5}
    state = {"state": {"optimizer.0.exp_avg": moment}, "param_groups": []}
    strategy.save_checkpoint(
        {"state_dict": {"net.weight": weight}, "optimizer_states": [state], "loops": counts}, tmp_path / "it.ckpt"
    )
    assert strategy.last_write is not None
    assert not strategy.last_write.done()
    assert not (tmp_path / "it.ckpt").exists()
    weight.zero_()
    moment.zero_()
    counts["total"] = 6
    disk.set()
    strategy.last_write.result(timeout=900)
    shards = Shards(tmp_path / "it.ckpt")
    assert torch.equal(shards.rows("net.weight"), torch.ones(3, 2))
    assert torch.equal(shards.rows("optimizer.0.exp_avg"), torch.full((3, 2), 2.0))
    assert read_rest(tmp_path / "it.ckpt")["loops"] == {"total": 5}


@pytest.mark.parametrize(("name", "names"), [("rest.pt", "data.pkl"), ("shard-00000-of-00001.safetensors", "shard-")])
def test_a_checkpoint_one_of_whose_files_differs_is_refused(
    name: str, names: str, single_process: Place, tmp_path: Path
) -> None:
    path = tmp_path / "it.ckpt"
    state = {"state": {"optimizer.0.exp_avg": torch.ones(3, 2)}, "param_groups": []}
    snapshot({"net.weight": torch.ones(3, 2)}, {"optimizer_states": [state], "epoch": "aaaa"}, single_process)(path)
    check_checkpoint(path)
    content = (path / name).read_bytes()
    place = content.index(b"aaaa") if name == "rest.pt" else len(content) - 1
    (path / name).write_bytes(content[:place] + b"b" + content[place + 1 :])
    with pytest.raises(ValueError, match=f"{names}.* has another content than was written"):
        check_checkpoint(path)


def test_a_disk_that_is_full_is_heard_of(single_process: Place, tmp_path: Path) -> None:
    strategy = ShardedStrategy(single_process)
    (tmp_path / "it.ckpt").write_text("a file where the folder should be")
    checkpoint = {"state_dict": {"w": torch.ones(1)}, "optimizer_states": [{"state": {}, "param_groups": []}]}
    strategy.save_checkpoint(checkpoint, tmp_path / "it.ckpt")
    assert strategy.last_write is not None
    with pytest.raises(OSError, match=r"it\.ckpt"):
        strategy.last_write.result(timeout=900)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("trainer.devices=3", "trainer.context=2"), r"trainer\.context=2: the 3 processes .* not a multiple"),
        (("trainer.devices=4", "trainer.context=4"), r"trainer\.context=4: .* 2 heads.* use 1 or 2"),
        (
            ("trainer.devices=2", "trainer.context=2", "scale.height=20", "scale.width=20"),
            r"trainer\.context=2: a clip has 75 tokens .*; use 1",
        ),
        (("trainer.devices=2", "trainer.context=2", "trainer.attention=flash3"), r"attention=flash3: .* sdpa, cudnn"),
    ],
)
def test_tokens_that_cannot_be_shared_equally_are_refused(overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build([*TWO, "backbone.num_attention_heads=2", *overrides])


def test_4k_can_be_shared_by_the_eight_gpus_of_a_machine() -> None:
    for scale in ("2k", "4k"):
        run = build([f"scale={scale}", "trainer=fsdp", "trainer.context=8", "train.accumulate=1"])
        assert (run.trainer.processes, run.trainer.shares) == (8, 1)


class Example:
    """A small network of which nothing is silent, and what it is given."""

    def __init__(self, attention: str = "dense") -> None:
        from pw.nn.backbone import Backbone

        words = ("injector=gated", "injector.blocks=[0,2]", "backbone.num_attention_heads=2", f"attention={attention}")
        run = build(["stage=hires", *words])
        torch.manual_seed(0)
        self.net, draw = Backbone(run.backbone, run.injector, None, run.attention), torch.Generator().manual_seed(1)
        for parameter in self.net.parameters():
            torch.nn.init.normal_(parameter, std=0.05, generator=draw)
        self.state, self.anchor = torch.randn(2, 2, 48, 3, 6, 6, generator=draw)
        self.text = torch.randn(2, run.backbone.text_tokens, run.backbone.text_dim, generator=draw)

    def evaluate(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Velocity, and the gradient of its mean square."""
        from pw.parallel.sharded import gather

        self.net.zero_grad()
        when = torch.tensor([900.0, 300.0])
        velocity = self.net(self.state, when, when / 8, self.text, self.anchor, sigma_timestep=when)
        velocity.square().mean().backward()
        return velocity.detach(), torch.cat([gather(p.grad).flatten() for p in self.net.parameters()])


@contextlib.contextmanager
def process_group(rank: int) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(os.environ["PW_STORE"], 2), rank=rank, world_size=2)
    yield
    dist.destroy_process_group()


@dataclass(frozen=True)
class SharedTokens:
    """A forward and a backward: alone, then by all processes together."""

    attention: str

    def carried_out(self, rank: int) -> str:
        """(tokens that reach the second block, largest differences of velocity and gradient) as JSON."""
        from pw.nn.backbone import groups_of, share_tokens

        example = Example(self.attention)
        tokens: list[int] = []
        example.net.dit.blocks[1].register_forward_pre_hook(lambda block, args: tokens.append(args[0].shape[1]))
        velocity, gradient = example.evaluate()
        with process_group(rank):
            share_tokens(example.net, groups_of(2, "cpu"))
            shared, part = example.evaluate()
            dist.all_reduce(part)  # each has the terms of its tokens
        return json.dumps([tokens, float((velocity - shared).abs().max()), float((gradient - part).abs().max())])


@dataclass(frozen=True)
class CompiledBlocks:
    """A forward and a backward: alone and as it is, then split over the processes with its blocks compiled.

    Traced, but not lowered: that would take minutes.
    """

    def carried_out(self, rank: int) -> str:
        """(blocks that were compiled, largest differences of velocity and gradient) as JSON."""
        from torch._dynamo.testing import CompileCounter
        from torch.distributed.device_mesh import init_device_mesh

        from pw.parallel.sharded import shard

        example, counter = Example(), CompileCounter()
        velocity, gradient = example.evaluate()
        with process_group(rank):
            example.net.dit.compile_repeated_blocks(backend=counter)
            shard(example.net, example.net.dit.blocks, init_device_mesh("cpu", (2,)))
            split, mean = example.evaluate()
        return json.dumps(
            [counter.frame_count, float((velocity - split).abs().max()), float((gradient - mean).abs().max())]
        )


@pytest.mark.slow
def test_blocks_that_are_compiled_can_be_split() -> None:
    for (report,) in train_together(2, CompiledBlocks()):
        frames, velocity, gradient = json.loads(report)
        assert frames > 0
        assert velocity < 1e-5
        assert gradient < 1e-5


@pytest.mark.slow
def test_each_process_computes_its_part_of_the_tokens() -> None:
    for reports in train_together(2, *map(SharedTokens, ATTENTION)):
        for report in reports:
            tokens, velocity, gradient = json.loads(report)
            assert tokens == [108, 54]
            assert velocity < 1e-5
            assert gradient < 1e-5


@pytest.fixture
def mesh() -> Iterator[Any]:
    """Of this process alone."""
    from torch.distributed.device_mesh import init_device_mesh

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_network_that_is_split_attends_as_a_whole_one(attention: str, mesh: Any) -> None:
    from pw.parallel.sharded import shard

    expected, example = Example(attention).evaluate(), Example(attention)
    example.net.checkpoint_activations()
    shard(example.net, example.net.dit.blocks, mesh)
    torch.testing.assert_close(example.evaluate(), expected)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")
@pytest.mark.parametrize("is_cached", [True, False])
def test_casts_that_autocast_keeps_from_a_target_take_the_gradients_of_a_split_network(
    is_cached: bool, mesh: Any
) -> None:
    from pw.parallel.sharded import shard

    example, when = Example(), torch.tensor([900.0, 300.0])
    shard(example.net, example.net.dit.blocks, mesh)
    inputs = (example.state, when, when / 8, example.text, example.anchor)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=is_cached):
        with torch.no_grad():
            example.net(*inputs, sigma_timestep=when)
        velocity = example.net(*inputs, sigma_timestep=when)
    velocity.square().mean().backward()
    without = [name for name, p in example.net.named_parameters() if p.grad is None]
    assert bool(without) == is_cached


def test_a_training_whose_autocast_keeps_casts_is_refused() -> None:
    class Caching(MixedPrecision):
        def autocast_context_manager(self) -> torch.autocast:
            return torch.autocast("cpu", torch.bfloat16)

    check_precision(MixedPrecision("bf16-mixed", "cpu"))
    check_precision(Precision())
    with pytest.raises(RuntimeError, match="weights would have no gradient"):
        check_precision(Caching("bf16-mixed", "cpu"))
