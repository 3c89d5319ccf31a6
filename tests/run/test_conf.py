"""Every option builds; a signature changes exactly with what changes a result; a wrong call fails at once."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from functools import cache
from itertools import permutations
from pathlib import Path

import hydra
import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from pw.cost.counts import stage_tokens
from pw.io.arguments import ConfigError
from pw.method.guidance import Guidance
from pw.method.objective import Alternate, Shortcut
from pw.method.step_sampler import ExponentialIndex
from pw.method.target import TwoSteps
from pw.method.weighting import DeltaSigma
from pw.run.build import Run, build
from pw.run.compose import compose_run, groups, leaves
from pw.train.record import write_config, written_overrides

ROOT = Path(__file__).parents[2]

# Option -> other overrides that it needs.
NEIGHBOURS = {
    "solver=consistency": ["objective=meanflow"],
    "turns=quarter": ["objective=meanflow"],
    "codec=wan_vae": ["scale=proxy", "start=none"],
    "data=latents": ["scale=proxy"],
    "backbone=small": ["scale=small", "data=none"],
    "codec=lapped_cosine": ["scale=small", "data=none"],
    "scale=small": ["data=none"],  # it trains on shards of one's own
    **{
        f"guidance={name}": ["guidance.drop=text_and_anchor", "train.condition_dropout=0.1"]
        for name in ("on", "first_steps", "reuse")
    },
    "guidance=baked": [
        *("target.guidance=finest", "target.guidance_scale=3", "target.guidance_drop=text_and_anchor"),
        "train.condition_dropout=0.1",
    ],
    "step_sampler=none": ["objective=flow"],
    "target=none": ["objective=flow"],
    "turns=none": ["objective=flow"],
    "weighting=none": ["objective=flow"],
}


def run_of(*overrides: str) -> Run:
    return build(overrides)


def error_of(*overrides: str) -> str:
    """The error message of a run, at the latest when it computes its signature."""
    with pytest.raises(ConfigError) as error:
        _ = run_of(*overrides).signature
    return str(error.value)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A train and a val clip of 3 frames, 24 x 24 px."""
    return write_clips(tmp_path_factory.mktemp("shards"), 24, 24)


def write_clips(folder: Path, height: int, width: int) -> Path:
    """A train and a val clip of 3 frames."""
    array = io.BytesIO()
    np.save(array, np.zeros((3, height, width, 3), np.uint8))
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as tar:
            member = tarfile.TarInfo(f"{split}-clip.npy")
            member.size = len(array.getvalue())
            tar.addfile(member, io.BytesIO(array.getvalue()))
    return folder


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Headers of one encoded clip of the proxy scale."""
    from small_latents import write_latents

    return write_latents(tmp_path_factory.mktemp("latents"), build(["scale=proxy"]), 1)


class TestEveryOption:
    @pytest.mark.parametrize("choice", [f"{group}={name}" for group in groups() for name in groups()[group]])
    def test_builds_with_all_the_runs_it_needs(self, choice: str, shards: Path, latents: Path) -> None:
        places = {"data=shards": f"{shards}/*.tar", "data=latents": str(latents)}
        urls = [f"data.urls={places[choice]}"] if choice in places else []
        run = run_of(choice, *NEIGHBOURS.get(choice, []), *urls)
        assert run.config.choices[choice.partition("=")[0]] == choice.partition("=")[2]
        assert len(run.signature) == 8

    @pytest.mark.parametrize("solver", groups()["solver"])
    def test_of_a_solver_is_held_against_the_solution_by_many_euler_steps(self, solver: str) -> None:
        objective = {"unipc": ["objective=flow", "solver.order=3"], "consistency": ["objective=meanflow"]}
        choices = objective.get(solver, ["objective=flow"])
        solution = run_of(f"solver={solver}", *choices).solution
        assert solution is not None
        assert solution.config.choices["solver"] == "euler"
        assert solution.sampling.num_steps == 48
        assert solution.training_signature == run_of(choices[0]).training_signature

    def test_of_consistency_training_chooses_its_solver_and_has_no_solution(self) -> None:
        run = run_of("objective=consistency")
        assert (run.config.choices["solver"], run.solution) == ("consistency", None)
        assert vars(run.objective)["updates"] == run.train.updates
        assert vars(run_of("objective=consistency", "train.updates=40").objective)["updates"] == 40

    def test_of_baked_guidance_is_held_against_a_solution_with_that_guidance(self) -> None:
        """At stride 0, where solutions are computed, the network has the velocity of flow matching: not guided."""
        run = run_of(*BAKED.split(), "target.guidance=finest")
        assert run.solution is not None
        assert run.solution.guidance == Guidance(scale=3, drop="text_and_anchor", first_steps=None)
        assert run.solution.training_signature == run.training_signature

    def test_of_a_start_from_the_anchor_is_held_against_a_solution_from_pure_noise(self) -> None:
        run = run_of("objective=flow", "sampling.init=anchor", "sampling.start=0.8")
        assert run.grid()[0] < 950
        assert run.solution is not None
        assert (run.solution.sampling.init, run.solution.grid()[0]) == ("noise", 1000)

    def test_of_the_trainer_holds_for_the_start_too(self) -> None:
        start = run_of("trainer=gpu").start_run
        assert start is not None
        assert start.trainer.accelerator == "gpu"


class TestTheSmallScale:
    def test_has_576_tokens_whose_noise_fits_through_the_width(self) -> None:
        run = run_of("scale=small", "data=none")
        assert stage_tokens(run) == 9 * 8 * 8  # 9 frames of 64 / 8 rows and columns
        assert run.backbone.width > 2 * run.codec.channels
        assert run.grid().tolist() == build([]).grid().tolist()

    @pytest.mark.parametrize(
        "words", ["attention=window", "attention=topk", "sampling.sizes=[0.5,0.5,1,1]", "stage=anchor"]
    )
    def test_takes_what_a_scale_takes(self, words: str) -> None:
        assert len(run_of("scale=small", "data=none", words, "trainer=gpu").signature) == 8


class TestComposing:
    """Runs with the same choices share the files; Hydra itself reads them for every run."""

    @pytest.mark.parametrize(
        "overrides",
        [
            ["scale.height=32", "scale.width=32", "degradation=flawed", "scale.frames=5"],  # interpolations follow
            ["optimizer.lr=1e-3", "sampling.timesteps=[900,600,300]", "start.overrides=['objective=flow']"],
            ["scale=2k", "text.negative_prompt='a, b: c'", "sampling.shift=null"],
            ["train.updates=4", "seed=1", "weighting=uniform", "seed=2"],
        ],
        ids=" ".join,
    )
    def test_gives_what_hydra_gives(self, overrides: list[str]) -> None:
        config = compose_run(overrides)  # which tells Hydra where the files are
        assert config.values == OmegaConf.to_container(hydra.compose("run", overrides), resolve=True)

    def test_leaves_nothing_of_one_run_in_the_next(self) -> None:
        assert compose_run(["scale.height=32", "train.updates=7"]).values["data"]["size"] == 32
        assert compose_run([]).values == compose_run(["scale.height=24", "train.updates=160"]).values

    @pytest.mark.parametrize(
        "path",
        ["~/x", "/x/日本", "/x/a b", "/x/a,b", "/x/a=b", "/x/$HOME", "/x/${HOME}", "/x/${HOME", "/x/\\\\${H}", "/x/[a]",
         "x/{a,b}-{0..3}.tar", "/x/it's", '/x/the "q"', "/x/end\\", "/x/a\\'", "/x/a#b%41", "/x/a:b(c)", "1e5", "true"],
    )  # fmt: skip
    def test_a_path_is_taken_as_typed(self, path: str, tmp_path: Path) -> None:
        values = compose_run(["data=shards", f"data.urls={path}", f"trainer.weights={path}"]).values
        assert values["data"]["urls"] == values["trainer"]["weights"] == str(Path(path).expanduser())
        run = build(["scale=2k", f"trainer.weights={path}"])  # the folder of its training says it, too
        write_config(run, tmp_path)
        assert compose_run(written_overrides(tmp_path)).values == run.config.values
        assert yaml.safe_load((tmp_path / "config.yaml").read_text()) == run.config.values

    def test_a_path_may_be_quoted_for_hydra_and_a_list(self) -> None:
        values = compose_run(["data=shards", "data.urls=[a.tar,'~/b,c.tar']", 'trainer.weights="~/a, b"']).values
        assert values["data"]["urls"] == ["a.tar", "~/b,c.tar"]  # expanded where they are read
        assert values["trainer"]["weights"] == str(Path("~/a, b").expanduser())
        assert compose_run(["trainer.weights=null"]).values["trainer"]["weights"] is None


class TestThePapersRecipe:
    """Numbers of the paper; `docs/method.md` derives them."""

    def test_is_the_default_of_the_second_stage(self) -> None:
        run = run_of("stage=hires")
        assert run.objective == Shortcut(
            flow_weight="uniform",
            turns=Alternate(),  # "alternating mini-batches", sec. 3.4
            step_sampler=ExponentialIndex(
                beta=0.7,  # sec. 4.1
                num_strides=6,  # K, sec. 3.4
                starts=(500, 600, 700, 800),  # sec. 3.4
                ground=True,  # D4
                include_start=False,
            ),
            weighting=DeltaSigma(p=0.5, normalise="expected"),  # Eq. 8, D7
            target=TwoSteps(halves="span_weighted", target_network="online"),  # Eq. 4
        )
        assert run.schedule.num_timesteps == 1000  # N, sec. 3.4
        assert run.schedule.coordinate == "timestep"  # D1
        assert run.sampling.num_steps == 4  # Table 5
        assert run.injector is not None
        assert run.config.label("injector") == "gated"  # Eq. 1
        assert build(["scale=2k"]).config["injector"]["blocks"] == [1]  # the authors' code

    def test_trains_as_section_4_1_does_where_the_scale_allows(self) -> None:
        run = run_of()
        assert run.optimizer.weight_decay == 0.01
        assert run.optimizer.clip == 1.0
        assert build(["scale=2k"]).optimizer.ema == 0.99  # the authors' code
        assert build(["scale=2k"]).train.condition_dropout == 0.1  # the authors' code
        assert run.train.trainable == "all"

    def test_makes_anchors_with_flow_matching_and_fifty_steps(self) -> None:
        run = run_of("stage=anchor")
        assert run.config.choices["objective"] == "flow"
        assert run.sampling.num_steps == 50  # docs/method.md
        assert run.injector is None

    def test_has_the_rivals_of_the_tables(self) -> None:
        assert run_of("step_sampler=uniform").config["step_sampler"]["beta"] == 0  # Table 9.3, row 2
        assert run_of("turns=bernoulli").config["turns"]["rate"] == 0.3  # the authors' code
        assert run_of("step_sampler=aligned").config["step_sampler"]["grids"] == [2, 3, 4, 5]  # Table 5
        guided = run_of("guidance=on", "guidance.drop=text_and_anchor", "train.condition_dropout=0.1")
        assert guided.guidance.scale == 5.0  # Wan's default
        assert run_of("injector=alpha_zero").config["injector"]["gate"] == "fixed"  # Table 4, row 4


# Another legal value of every key of the default configuration, by what it changes.
ANCHOR_DROPPED = "guidance.drop=text_and_anchor train.condition_dropout=0.1"
BAKED = "guidance=baked target.guidance_scale=3 target.guidance_drop=text_and_anchor train.condition_dropout=0.1"
CHANGES_WEIGHTS = {
    "backbone.patch_size": "backbone.patch_size=[1,2,2]",
    "backbone.num_attention_heads": "backbone.num_attention_heads=1",
    "backbone.attention_head_dim": "backbone.attention_head_dim=16",
    "backbone.in_channels": "codec.factor=2 backbone.in_channels=12",
    "backbone.ffn_dim": "backbone.ffn_dim=64",
    "backbone.num_layers": "backbone.num_layers=2",
    "backbone.text_dim": "backbone.text_dim=32",
    "backbone.text_tokens": "backbone.text_tokens=2",
    "backbone.freq_dim": "backbone.freq_dim=128",
    "backbone.rope_max_seq_len": "backbone.rope_max_seq_len=32",
    "codec.factor": "codec.factor=2 backbone.in_channels=12",
    "data.frames": "scale.frames=5",
    "data.size": "scale.height=32 scale.width=32",
    "data.width": "scale.width=32",
    "scale.name": "scale.name=small",
    "scale.frames": "scale.frames=5",
    "scale.height": "scale.height=32 scale.width=32",
    "scale.width": "scale.height=32 scale.width=32",
    "scale.anchor_height": "scale.anchor_height=8",
    "scale.anchor_width": "scale.anchor_width=8",
    "scale.anchor_upsample": "scale.anchor_upsample=latent",
    "scale.shift": "scale.shift=5",
    "scale.injector_blocks": "scale.injector_blocks=[1]",
    "scale.injector_hidden": "scale.injector_hidden=0.25",
    "scale.norm_groups": "scale.norm_groups=4",
    "train.updates": "train.updates=159",
    "train.batch_size": "train.batch_size=4",
    "train.accumulate": "train.accumulate=2",
    "train.precision": "train.precision=bf16",
    "train.condition_dropout": "train.condition_dropout=0.2",
    "train.trainable": "train.trainable=adapters",
    "train.lora.rank": "train.trainable=lora train.lora.rank=4",
    "train.lora.alpha": "train.trainable=lora train.lora.alpha=4",
    "train.lora.targets": "train.trainable=lora train.lora.targets=[to_q]",
    "train.lora.dropout": "train.trainable=lora train.lora.dropout=0.1",
    "train.checkpoint_activations": "train.checkpoint_activations=true",
    "optimizer.lr": "optimizer.lr=1e-3",
    "optimizer.betas": "optimizer.betas=[0.9,0.999]",
    "optimizer.weight_decay": "optimizer.weight_decay=0",
    "optimizer.clip": "optimizer.clip=0.5",
    "optimizer.warmup": "optimizer.warmup=0",
    "optimizer.final_lr": "optimizer.final_lr=0.1",
    "optimizer.ema": "optimizer.ema=0.9",
    "step_sampler.beta": "step_sampler.beta=0.35",
    "step_sampler.num_strides": "step_sampler.num_strides=5",
    "step_sampler.ground": "step_sampler.ground=false",
    "step_sampler.starts": "step_sampler.starts=[500,600]",
    "step_sampler.include_start": "step_sampler.include_start=true",
    "weighting.p": "weighting.p=1",
    "weighting.normalise": "weighting.normalise=batch",
    "target.halves": "target.halves=equal",
    "target.target_network": "target.target_network=ema",
    "target.guidance": f"{BAKED} target.guidance=every",
    "target.guidance_scale": f"{BAKED} target.guidance=finest",
    "target.guidance_drop": f"{BAKED} target.guidance=finest",
    "train.dropout": "data.captions=texture train.condition_dropout=0.1 train.dropout=both_or_text",
    "train.sizes": "train.sizes=[0.5,1]",
    "train.image_share": "scale.frames=5 train.image_share=0.5",
    "data.captions": "data.captions=texture",
    "objective.flow_weight": "objective.flow_weight=bell",
    "injector.gate": "injector.gate=fixed",
    "injector.blocks": "injector.blocks=[0,1]",
    "injector.hidden": "injector.hidden=0.5",
    "injector.groups": "injector.groups=2",
    "start.name": "start=none",
    "start.overrides": "start.overrides=['objective=flow','start=none']",
    "start.inherit": "start.inherit=[scale] injector.groups=2",
    "start.updates": "start.updates=10",
    "start.seed": "start.seed=1001",
    "stage": "stage=anchor",
    "schedule.shift": "schedule.shift=5.5",
    "schedule.num_timesteps": "schedule.num_timesteps=900",
    "schedule.coordinate": "schedule.coordinate=index",
    "schedule.snap": "schedule.snap=false",
    "degradation.downscale": "degradation.downscale=[2,4]",
    "degradation.blur": "degradation.blur=[0.5,1]",
    "degradation.taps": "degradation.taps=[3]",
    "degradation.noise": "degradation.noise=[0,0.2]",
    "degradation.noise_probability": "degradation.noise_probability=1",
    "seed": "seed=1",
    "trainer.accelerator": "trainer=gpu",  # floats are not the same there
}
CHANGES_CLIPS = {
    "sampling.grid": "sampling.grid=wan",
    "sampling.num_steps": "sampling.num_steps=2",
    "sampling.shift": "sampling.shift=3",
    "sampling.start": "sampling.start=0.999",
    "sampling.timesteps": "sampling.timesteps=[1000,931,818,600]",
    "sampling.stride": "sampling.stride=zero",
    "sampling.count": "sampling.count=64",
    "anchors.source": "anchors=generated",
    "anchors.degradation": "anchors=flawed",
    "anchors.stage": "anchors=generated anchors.stage.updates=10",
    "guidance.scale": "guidance=on guidance.drop=text_and_anchor",
    "guidance.drop": "guidance=on guidance.drop=text_and_anchor",
    "guidance.first_steps": "guidance=on guidance.drop=text_and_anchor guidance.first_steps=1",
    "guidance.later": "guidance=reuse guidance.drop=text_and_anchor",
    "sampling.sizes": "sampling.sizes=[0.5,0.5,1,1]",
    "sampling.init": "sampling.init=anchor sampling.timesteps=[800,600,400,200]",
}
CHANGES_NOTHING = {
    "sampling.batch_size": "sampling.batch_size=4",
    "sampling.solution_steps": "sampling.solution_steps=24",
    "sampling.solution_count": "sampling.solution_count=8",
    "train.checkpoint_every": "train.checkpoint_every=10",
    "trainer.threads": "trainer.threads=2",
    "trainer.attention": "trainer.attention=flash",
    "trainer.compile": "trainer.compile=true",
    "trainer.guidance_batch": "trainer.guidance_batch=true",
    "trainer.deterministic": "trainer.deterministic=true",
    "scale.anchor_shift": "scale.anchor_shift=5",  # stage I has it
    # of sparse attention alone
    "scale.window": "scale.window=[2,2]",
    "scale.window_tile": "scale.window_tile=[3,2,1]",
    "scale.attention_tile": "scale.attention_tile=[1,2,2]",
    "code": "code=as_trained",  # and nothing was trained
    # of a shipped start alone: tests/train/test_start.py
    "start.tuning": "start.tuning=10",
    "start.tuning_lr": "start.tuning_lr=1e-4",
}
HAS_NO_OTHER_VALUE = {
    "trainer.devices",
    "trainer.offload_activations",
    "trainer.offload",
    "trainer.storage",
    "trainer.weights",
    "start.shipped",
}  # without others


@cache
def default() -> Run:
    return run_of()


def run_of_line(line: str) -> Run:
    return run_of(*line.split())


class TestASignature:
    def test_has_its_say_on_every_key_there_is(self) -> None:
        keys = {key for key in leaves(default().config.values) if not key.endswith("_target_")}
        assert keys == CHANGES_WEIGHTS.keys() | CHANGES_CLIPS.keys() | CHANGES_NOTHING.keys() | HAS_NO_OTHER_VALUE

    @pytest.mark.parametrize("key", CHANGES_WEIGHTS)
    def test_of_a_training_differs_for_what_changes_its_weights(self, key: str) -> None:
        run = run_of_line(CHANGES_WEIGHTS[key])
        assert run.training_signature != default().training_signature
        assert run.signature != default().signature

    @pytest.mark.parametrize("key", CHANGES_CLIPS)
    def test_of_the_clips_differs_for_how_they_are_sampled_and_that_of_the_training_does_not(self, key: str) -> None:
        # guidance steers away from dropped anchors, which the default of this scale never shows
        shared = ["train.condition_dropout=0.1"] if key.startswith("guidance.") else []
        run, other = run_of(*CHANGES_CLIPS[key].split(), *shared), run_of(*shared)
        assert run.training_signature == other.training_signature
        assert run.signature != other.signature

    @pytest.mark.parametrize("key", CHANGES_NOTHING)
    def test_is_the_same_wherever_it_runs(self, key: str) -> None:
        run = run_of_line(CHANGES_NOTHING[key])
        assert run.config.values != default().config.values
        assert (run.training_signature, run.signature) == (default().training_signature, default().signature)

    def test_is_the_same_wherever_activations_wait(self) -> None:
        checkpointed = "train.checkpoint_activations=true"
        on_device, on_host = run_of(checkpointed), run_of(checkpointed, "trainer.offload_activations=true")
        assert on_host.trainer != on_device.trainer
        assert on_host.signature == on_device.signature

    def test_differs_for_weights_in_8_bits_in_the_clips_alone_and_not_for_offloaded_ones(self) -> None:
        plain, rounded, offloaded = (
            run_of("scale=2k", *more) for more in ((), ("trainer.storage=fp8",), ("trainer.offload=group",))
        )
        assert plain.training_signature == rounded.training_signature == offloaded.training_signature
        assert plain.signature == offloaded.signature != rounded.signature

    def test_differs_between_any_two_of_these_trainings(self) -> None:
        lines = dict.fromkeys(CHANGES_WEIGHTS.values())
        signatures = {run_of_line(line).training_signature: line for line in lines}
        assert len(signatures) == len(lines)

    def test_differs_between_any_two_patterns_of_attention_and_starts_from_the_same_start(self) -> None:
        lines = ["attention=dense", "attention=window", "attention=topk", "attention=anchor"]
        lines += ["attention=window scale.window=[2,2]", "attention=window attention.tile=[1,6,6]"]
        lines += [f"attention={name} attention.density=0.5" for name in ("topk", "anchor")]
        runs = [run_of_line(line) for line in lines]
        assert runs[0].training_signature == default().training_signature
        for signatures in ({run.training_signature for run in runs}, {run.configuration_signature for run in runs}):
            assert len(signatures) == len(lines)
        starts = [run.start_run for run in runs]
        assert all(start and start.attention is None and start.card for start in starts)  # trained before the group

    def test_does_not_depend_on_the_order_of_the_overrides(self) -> None:
        overrides = ["weighting.p=0.25", "step_sampler=closed", "scale.frames=5"]
        assert len({run_of(*order).signature for order in permutations(overrides)}) == 1

    def test_is_the_same_for_a_default_that_is_spelled_out(self) -> None:
        assert run_of("weighting=delta_sigma", "weighting.p=0.5").signature == default().signature

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("weighting.p=1", "weighting.p=1.0"),
            ("degradation.blur=[1,1]", "degradation.blur=[1.0,1.0]"),
            ("sampling.shift=3", "sampling.shift=3.0"),
            ("sampling.timesteps=[1000,900,800,700]", "sampling.timesteps=[1e3,9e2,8e2,7e2]"),
        ],
    )
    def test_is_the_same_for_a_number_written_in_two_ways(self, one: str, other: str) -> None:
        assert run_of(one).signature == run_of(other).signature

    def test_of_the_clips_depends_on_whose_evaluation_clips_they_answer(self) -> None:
        run = default()
        assert run.sample_signature(0) == run.signature
        assert run.sample_signature(1) != run.signature
        assert run.evaluation_signature(1) != run.evaluation_signature(0)

    def test_of_the_evaluation_clips_is_shared_by_all_arms(self) -> None:
        arm = run_of("objective=flow", "sampling.num_steps=2", "train.updates=3", "injector=none")
        assert arm.evaluation_signature(5) == default().evaluation_signature(5)

    def test_of_the_start_enters(self) -> None:
        start = default().start_run
        assert start is not None
        assert start.training_signature != default().training_signature
        other = run_of("start.updates=10").start_run
        assert other is not None
        assert other.training_signature != start.training_signature

    def test_of_the_anchors_stage_enters_the_clips(self) -> None:
        run = run_of("anchors=generated", "degradation.blur=[0.5,0.5]")
        assert run.anchor_run is not None
        # the stage takes the degradation over: its anchors are what the second stage was trained on
        assert run.anchor_run.config["degradation"]["blur"] == [0.5, 0.5]
        assert run.anchor_run.sampling.count == run.sampling.count

    def test_of_another_seed_is_that_of_composing_with_it(self) -> None:
        assert default().with_seed(3).signature == run_of("seed=3").signature
        assert default().with_seed(3, 9).signature == run_of("seed=3", "start.seed=9").signature


# (overrides, parts of the message: the key, the value, and a valid value)
WRONG = [
    # keys
    ("weigthing=uniform", ["weigthing", "did you mean weighting?"]),
    ("optimiser.lr=1e-3", ["optimiser.lr=1e-3", "did you mean optimizer.lr?"]),
    ("train.lr=1e-3", ["train.lr=1e-3", "did you mean optimizer.lr?"]),
    ("train.learning_rate=1", ["there is no key train.learning_rate; train has updates"]),
    ("trainer.weights=there", ["trainer.weights=there: scale=tiny reads none of Wan's weights"]),
    ("weighting.pp=1", ["weighting.pp=1", "did you mean weighting.p?", "normalise"]),
    ("train.batchsize=4", ["train.batchsize=4", "did you mean train.batch_size?"]),
    ("nothing=1", ["nothing=1", "there is no key nothing", "step_sampler", "weighting"]),
    ("solver.order=3", ["solver.order=3", "set solver=unipc"]),
    ("data.urls=clips", ["data.urls=clips", "set data=latents or data=shards"]),
    ("train={updates:4,batches:3}", ["write each key out, e.g. train.updates=4"]),
    ("hydra.verbose=true", ["hydra.verbose=true", "there is no key hydra.verbose"]),
    # options
    ("weighting=delta", ["weighting=delta", "delta_sigma, none, uniform", "did you mean delta_sigma?"]),
    ("step_sampler=cloosed", ["step_sampler=cloosed", "aligned, chain, closed", "did you mean closed?"]),
    ("scale=8k", ["scale=8k", "one of 2k, 4k, proxy, small, tiny"]),
    ("objective=", ["objective=", "consistency, flow, meanflow, shortcut"]),
    # words that are no override, and classes
    ("weighting", ["'weighting'", "key=value"]),
    ("+weighting.power=1", ["'+weighting.power=1'", "key=value"]),
    ("~weighting", ["'~weighting'", "key=value"]),
    ("weighting._target_=os.system", ["weighting._target_=os.system", "by group", "weighting=…"]),
    ("degradation._target_=pw.data.degradation.Clean", ["_target_", "degradation=…"]),
    ("weighting.p=[", ["weighting.p=[", "not one value"]),
    ("seed=1,2", ["seed=1,2", "not one value", "seed=[1,2]"]),
    # types
    ("train.updates=many", ["train.updates='many'", "a whole number"]),
    ("train.updates=1.5", ["train.updates=1.5", "a whole number"]),
    ("train.updates=true", ["train.updates=True", "a whole number"]),
    ("weighting.p=high", ["weighting.p='high'", "a number"]),
    ("optimizer.lr=nan", ["optimizer.lr=nan", "positive"]),
    ("optimizer.betas=[0.9]", ["optimizer.betas=[0.9]", "a list of 2 of a number"]),
    ("degradation.blur=2", ["degradation.blur=2", "a list of 2"]),
    ("schedule.snap=1", ["schedule.snap=1", "true or false"]),
    ("sampling.stride=gird", ["sampling.stride='gird'", "auto, grid, zero", "did you mean grid?"]),
    ("schedule.coordinate=idx", ["schedule.coordinate='idx'", "timestep, index"]),
    ("train=3", ["train=3", "train.updates"]),
    ("seed=null", ["seed=None", "a whole number"]),
    # ranges
    ("optimizer.lr=0", ["optimizer.lr=0", "positive"]),
    ("optimizer.warmup=-1", ["optimizer.warmup=-1", "or more"]),
    ("train.updates=-1", ["train.updates=-1", "or more"]),
    ("start.updates=-1", ["start.updates=-1", "from 0 to"]),
    ("train.batch_size=0", ["train.batch_size=0", "at least 1"]),
    ("train.condition_dropout=1", ["train.condition_dropout=1", "0 to below 1"]),
    ("trainer.threads=0", ["trainer.threads=0", "at least 1"]),
    ("trainer.devices=2", ["trainer.devices=2", "one device"]),
    ("trainer.offload_activations=true", ["trainer.offload_activations=true", "train.checkpoint_activations=true"]),
    ("trainer.offload=model", ["trainer.offload='model'", "one of none, group"]),
    ("trainer.storage=fp4", ["trainer.storage='fp4'", "one of as_computed, fp8", "did you mean fp8?"]),
    ("trainer.offload=group", ["trainer.offload=group", "scale=tiny", "set scale=2k"]),
    ("trainer.storage=fp8", ["trainer.storage=fp8", "scale=tiny", "set scale=2k"]),
    ("scale=2k trainer=fsdp trainer.offload=group", ["trainer.offload=group: trainer=fsdp", "set trainer=gpu"]),
    ("scale=2k trainer=ddp trainer.storage=fp8", ["trainer.storage=fp8: trainer=ddp", "set trainer=gpu"]),
    (
        "scale=2k trainer.compile=true trainer.storage=fp8",
        ["trainer.storage=fp8", "trainer.compile=true", "set trainer.compile=false", "trainer.offload=group"],
    ),
    ("schedule.shift=0", ["schedule.shift=0.0", "positive"]),
    ("sampling.num_steps=0", ["sampling.num_steps=0", "at least 1"]),
    ("sampling.start=2", ["sampling.start=2", "(0, 1]"]),
    ("sampling.timesteps=[600,700,800,900]", ["sampling.timesteps=[600", "falling"]),
    ("sampling.timesteps=[1200,900,800,700]", ["sampling.timesteps=[1200", "at most N=1000"]),
    ("sampling.timesteps=[1000,500]", ["has 2 steps", "sampling.num_steps=4"]),
    ("step_sampler.num_strides=0", ["step_sampler.num_strides=0", "at least 1"]),
    ("step_sampler.starts=[500,1200]", ["step_sampler.starts=[500, 1200]", "at most N=1000"]),
    ("step_sampler.starts=[20]", ["step_sampler.starts=[20]", "at least 64"]),
    ("turns=bernoulli turns.rate=1.4", ["turns.rate=1.4", "0 to 1"]),
    ("degradation.blur=[2,1]", ["degradation.blur=[2.0, 1.0]", "low <= high"]),
    ("solver=unipc solver.order=9", ["solver.order=9", "1, 2 or 3"]),
    ("injector.blocks=[3]", ["injector.blocks=[3]", "blocks 0 to 2"]),
    ("injector.groups=0", ["injector.groups=0", "at least 1"]),
    ("injector.groups=3", ["injector.groups=3", "16 hidden channels"]),
    ("injector.hidden=0.001", ["injector.hidden=0.001", "no channel"]),
    ("backbone.patch_size=[0,1,1]", ["backbone.patch_size=0", "from 1 to"]),
    # what does not fit together
    ("backbone.patch_size=[1,4,1]", ["scale.height", "6 latent positions", "patch size 4"]),
    ("scale.height=25", ["scale.height=25", "codec.factor=4"]),
    ("data.width=32", ["data.width=32", "24 x 24", "scale.width"]),
    ("data.frames=5", ["data.frames=5", "3 frames", "scale.frames"]),
    ("codec.factor=2", ["backbone.in_channels=48", "12 channels"]),
    ("scale.anchor_height=48", ["scale.anchor_height=48", "no larger than the clip"]),
    ("start=none train.updates=0", ["train.updates=0", "start=none", "random weights"]),
    # an option of a strategy that is not used
    ("sampling.timesteps=[1000,931,818,600] sampling.shift=3", ["sampling.timesteps", "does not use sampling.shift"]),
    ("weighting.p=1 objective=flow", ["weighting.p=1", "objective=flow", "set weighting=delta_sigma"]),
    ("weighting=uniform weighting.p=1", ["weighting.p=1", "weighting=uniform", "set weighting=delta_sigma"]),
    ("objective=flow weighting=delta_sigma", ["weighting=delta_sigma", "objective=flow", "objective=shortcut"]),
    ("objective=flow step_sampler=closed", ["step_sampler=closed", "objective=flow", "objective=shortcut"]),
    ("turns=none", ["turns=none", "objective=shortcut needs one", "conf/turns/"]),
    ("turns.rate=0.4", ["turns.rate=0.4", "set turns=bernoulli"]),
    ("objective=flow sampling.stride=grid", ["sampling.stride=grid", "objective=flow", "auto"]),
    ("stage=anchor injector=gated", ["injector=gated", "stage=anchor", "none"]),
    ("stage=anchor anchors=flawed", ["anchors=flawed", "stage=anchor", "reference"]),
    ("injector=none anchors=generated", ["anchors=generated", "injector=none", "reference"]),
    ("injector=none degradation=flawed", ["degradation=flawed", "injector=none", "no anchor"]),
    ("injector=none train.trainable=adapters", ["train.trainable=adapters", "injector=gated"]),
    ("train.lora.rank=4", ["train.lora.rank=4", "train.trainable=all", "train.trainable=lora"]),
    ("train.trainable=lora train.lora.targets=[to_q,to_x]", ["train.lora.targets", "to_x", "to_out.0", "ffn.net.2"]),
    ("train.trainable=lora train.lora.targets=[]", ["train.lora.targets=[]", "to_q"]),
    ("train.trainable=lora train.lora.rank=999", ["train.lora.rank=999", "the layers have rank", "lower"]),
    ("train.trainable=lora train.lora.dropout=1", ["train.lora.dropout=1", "0.9"]),
    ("train.trainable=lora train.lora.dropout=0.1 trainer.compile=true", ["train.lora.dropout", "compile", "0"]),
    # guidance that would do nothing
    ("guidance=on", ["guidance.drop=text", "change nothing", "guidance.drop=text_and_anchor"]),
    # what would change nothing
    ("train.dropout=both_or_text", ["train.condition_dropout=0", "above 0"]),
    (
        "train.dropout=both_or_text train.condition_dropout=0.1",
        ["train.dropout=both_or_text", "only the empty prompt", "train.dropout=both,", "data.captions=texture"],
    ),
    (
        "target.guidance_drop=text_and_anchor",
        ["target.guidance_drop=text_and_anchor", "target.guidance=finest or every"],
    ),
    (f"{BAKED} target.guidance=every sampling.stride=zero", ["guidance=baked", "sampling.stride=zero", "guidance=on"]),
    ("attention=window attention.window=[6,6]", ["attention.window=[6, 6]", "6 x 6 tokens", "attention=dense"]),
    ("attention=topk attention.density=0.95", ["attention.density=0.95", "of 9 blocks all", "attention=dense"]),
    ("sampling.sizes=[0.95,0.95,1,1]", ["sampling.sizes=[0.95", "0.95 and 1 are the same whole tokens"]),
    ("train.sizes=[0.5,0.55,1]", ["train.sizes=[0.5, 0.55", "0.5 and 0.55 are the same"]),
    (
        f"{ANCHOR_DROPPED} guidance=reuse sampling.sizes=[0.5,0.5,0.5,1]",
        ["guidance.first_steps=1", "same size", "set guidance=on", "sampling.sizes=[0.5"],
    ),
    (
        "scale=2k sampling.init=anchor sampling.num_steps=2 sampling.timesteps=[800,600]",
        ["sampling.timesteps=[800.0, 600.0]", "sampling.start=0.999", "set sampling.shift=null sampling.start=1"],
    ),
    ("scale=2k anchors=few_step", ["anchors=few_step: trains stage I", "anchors.stage.updates=0"]),
    ("guidance=on guidance.scale=1", ["guidance=on", "guidance.scale=1", "off"]),
    ("guidance.drop=text_and_anchor", ["guidance=off", "not guided", "guidance=on"]),
    (
        "guidance=on guidance.drop=text_and_anchor train.condition_dropout=0.1 guidance.first_steps=0",
        ["guidance.first_steps=0", "at least 1"],
    ),
    (
        "guidance=on guidance.drop=text_and_anchor train.condition_dropout=0.1 injector=none",
        ["guidance.scale=5.0", "injector=none"],
    ),
    (
        "guidance=on guidance.drop=text_and_anchor train.condition_dropout=0",
        ["guidance.scale=5.0", "train.condition_dropout=0", "never trained"],
    ),
    # few-step rivals
    ("solver=consistency", ["solver=consistency", "objective=shortcut", "solver=euler", "objective=consistency"]),
    ("objective=flow solver=consistency", ["solver=consistency", "objective=flow does not train", "solver=euler"]),
    ("objective=consistency solver=euler", ["solver=euler", "objective=consistency", "solver=consistency"]),
    ("objective=consistency solver=unipc", ["solver=unipc", "objective=consistency", "solver=consistency"]),
    ("objective=consistency sampling.stride=zero", ["sampling.stride=zero", "leave it at auto"]),
    ("objective=consistency sampling.sizes=[0.5,1,1,1]", ["sampling.sizes=[0.5, 1.0", "solver=euler"]),
    ("objective=consistency objective.doublings=7", ["objective.doublings=7", "1024 timesteps", "fewer doublings"]),
    ("objective=consistency solver=euler sampling.stride=zero", ["solver=euler", "solver=consistency"]),
    (
        "objective=meanflow objective.step=3e-4",
        ["objective.step=3e-4", "no effect with objective.derivative=exact", "set objective.derivative=difference"],
    ),
    (
        "objective=meanflow objective.power=0 objective.constant=1e-2",
        ["objective.constant=1e-2", "no effect with objective.power=0", "set objective.power=1"],
    ),
    (
        "objective=consistency objective.distance=squared objective.huber=1",
        ["objective.huber=1", "no effect with objective.distance=squared", "set objective.distance=pseudo_huber"],
    ),
    (
        "objective=consistency objective.doublings=0 objective.updates=10",
        ["objective.updates=10", "no effect with objective.doublings=0", "set objective.doublings=4"],
    ),
    ("objective=meanflow step_sampler=aligned", ["step_sampler=aligned", "objective=meanflow does not use"]),
    ("objective=meanflow turns=none", ["turns=none", "objective=meanflow needs one"]),
    ("objective=meanflow objective.derivative=jvp", ["objective.derivative='jvp'", "exact, difference"]),
    # sparse attention
    ("attention=windw", ["attention=windw", "anchor, dense, topk, window", "did you mean window?"]),
    ("attention.density=0.5", ["attention.density=0.5", "set attention=anchor or attention=topk"]),
    ("attention=topk attention.window=[2,2]", ["attention.window=[2,2]", "set attention=window"]),
    ("attention=window attention.window=[7,3]", ["attention.window=[7, 3]", "6 x 6 tokens", "attention.window=[6,6]"]),
    ("attention=window attention.window=[0,3]", ["attention.window=0", "from 1 to"]),
    ("attention=topk attention.density=0", ["attention.density=0", "from 0.001 to 1"]),
    ("attention=anchor attention.density=1.1", ["attention.density=1.1", "from 0.001 to 1"]),
    ("attention=topk attention.tile=[3,6,6]", ["attention.tile=[3, 6, 6]", "108 tokens", "attention=dense"]),
    ("attention=anchor injector=none", ["attention=anchor", "stage=hires", "injector=none", "attention=topk"]),
    ("attention=anchor stage=anchor", ["attention=anchor", "stage=anchor", "no anchor", "attention=topk"]),
    ("attention=topk trainer.attention=flash", ["trainer.attention=flash", "attention=topk", "trainer.attention=sdpa"]),
    ("scale=2k attention=topk attention.tile=[4,4,4]", ["attention.tile=[4, 4, 4]", "64 tokens", "multiple of 128"]),
    ("scale=2k stage=anchor attention=window", ["attention.window=[22, 40]", "8 x 14 tokens"]),
    ("trainer.deterministic=true trainer.attention=cudnn", ["trainer.deterministic=true", "cudnn", "sdpa, flash"]),
    # data
    ("data.captions=texture backbone.text_dim=3", ["data.captions=texture", "one of 4", "backbone.text_dim at 4"]),
    ("data.captions=texture text=umt5 start=none", ["data.captions=texture", "leave text at none"]),
    ("data=latents data.urls=/not/there", ["data.urls=/not/there", "no latents.json", "make latents"]),
    ("data=shards data.urls=/not/there", ["data.urls=/not/there", "not there", "make data path=DIR"]),
    ("data=shards data.urls='http://example.com/a.tar'", ["example.com", "only local files"]),
]


class TestAWrongCall:
    @pytest.mark.parametrize(("line", "message_parts"), WRONG, ids=[line for line, _ in WRONG])
    def test_is_told_the_key_the_value_and_what_would_do(self, line: str, message_parts: Sequence[str]) -> None:
        message = error_of(*line.split())
        assert not [part for part in message_parts if part not in message], message
        assert "\n" not in message

    def test_with_a_folder_without_shards_is_told_how_to_make_them(self, tmp_path: Path) -> None:
        message = error_of("data=shards", f"data.urls={tmp_path}")
        assert f"data.urls={tmp_path}" in message
        assert "make data path=DIR" in message

    def test_without_the_clips_of_a_scale_is_told_how_to_make_those(self) -> None:
        message = error_of("scale=small", "data.urls=nowhere")
        assert "`pw data path=DIR scale=small`" in message
        assert "data.urls=nowhere: not there" in message

    def test_with_clips_smaller_than_the_scale_is_told_both_sizes(self, shards: Path) -> None:
        message = error_of("data=shards", f"data.urls={shards}/*.tar", "scale.frames=5")
        assert "5 frames" in message
        assert "3 of 24x24" in message

    @pytest.mark.parametrize(
        "guided",
        ["train.dropout=both_or_text", "guidance=baked target.guidance=finest target.guidance_scale=5"],
    )
    def test_that_drops_texts_from_clips_without_any_is_told_where_there_are_some(
        self, shards: Path, guided: str
    ) -> None:
        """Without captions clips in pixels are trained under the empty prompt, at real scales, too: v - v_null is 0."""
        real = ("text=umt5", "start=none", "train.condition_dropout=0.1", f"data.urls={shards}/*.tar")
        message = error_of("data=shards", *real, *guided.split())
        assert f"no clip of data.urls={shards}/*.tar has a caption" in message
        assert "captions=FILE" in message

    def test_of_a_run_it_needs_names_that_run(self) -> None:
        message = error_of("anchors=generated", "anchors.stage.overrides=['optimizer.lr=0']")
        assert message.startswith("anchors (anchor): ")


class TestBuilding:
    def test_from_shards_at_a_scale_wider_than_high_gives_such_clips_and_anchors(self, tmp_path: Path) -> None:
        import torch

        write_clips(tmp_path, 32, 48)
        sizes = ("scale.height=24", "scale.width=40", "scale.anchor_height=12", "scale.anchor_width=20")
        run = run_of("data=shards", f"data.urls={tmp_path}/*.tar", *sizes)
        clips = run.source.batch(0, 0, 1)
        assert isinstance(clips, torch.Tensor)
        assert clips.shape == (1, 3, 3, 24, 40)
        assert run.source.evaluation(1, 0).real[0].shape == (3, 3, 24, 40)
        anchor = run.degradation.anchor(clips, run.scale.anchor_size, torch.Generator().manual_seed(0))
        assert anchor.shape == (1, 3, 3, 12, 20)

    def test_a_width_that_is_said_or_not_is_the_same_run(self, shards: Path) -> None:
        explicit, implicit = (run_of("data=shards", f"data.urls={shards}/*.tar", f"data.width={n}") for n in (24, 0))
        assert explicit.signature == implicit.signature
        assert explicit.evaluation_signature(0) == implicit.evaluation_signature(0)

    def test_imports_no_torch(self) -> None:
        """The error for a wrong key must not wait for the import of torch."""
        code = """if True:
            import sys
            from experiments.engine.plan import make_plan, parse
            from experiments.engine.job import all_jobs
            from pw.run.build import build
            build(["solver=unipc", "step_sampler=aligned", "injector=add", "anchors=flawed"])
            all_jobs(make_plan(parse(["name=ansc", "arms=baseline,full", "seeds=1"])))
            heavy = {"torch", "lightning", "diffusers", "mlflow", "av", "pandas", "matplotlib"} & sys.modules.keys()
            sys.exit(f"imported {heavy}" if heavy else 0)
        """
        process = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False
        )
        assert process.returncode == 0, process.stderr

    @pytest.mark.parametrize(
        ("verb", "words", "message"),
        [
            ("ablation", ["name=ans"], "did you mean ansc?"),
            ("ablation", ["name=ansc", "sampling.cuont=9"], "did you mean sampling.count?"),
            ("train", ["weighting=unifrom"], "did you mean uniform?"),
            ("train", ["start.overrides=['optimizer.lr=0']"], "start (hires)"),
            ("sample", ["sampling.num_steps=0"], "sampling.num_steps=0"),
            ("coverage", ["objective=flow"], "set objective=shortcut"),
            ("coverage", ["step_sampler.beta=steep"], "step_sampler.beta='steep'"),
        ],
    )
    def test_answers_a_wrong_call_without_importing_torch(self, verb: str, words: list[str], message: str) -> None:
        """Stands for "at once": a time limit would depend on the load of the machine."""
        command = [sys.executable, "-X", "importtime", "-m", "pw", verb, *words]
        process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900, check=False)
        lines = process.stderr.splitlines()
        imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
        assert "pw.run.build" in imported
        assert not {"torch", "lightning", "diffusers", "mlflow", "av", "pandas", "matplotlib"} & imported
        (answer,) = (line for line in lines if not line.startswith("import time:"))
        assert answer.startswith("error: ")
        assert message in answer
        assert process.stdout == ""
        assert process.returncode == 2


class TestTheCoverageCommand:
    def test_prints_every_step_of_every_grid_and_the_second_halves(self, capsys: pytest.CaptureFixture[str]) -> None:
        from pw.run.trained_pairs import main

        assert main(["step_sampler=exponential_index"]) == 0
        lines = capsys.readouterr().out.splitlines()
        steps = [line.split() for line in lines if " yes " in line or " no " in line]
        assert len(steps) == 2 + 3 + 4 + 5
        # D5: of the 4-step grid only the last jump, 600 -> 0, is a trained step
        four = steps[5:9]
        assert four[0][0] == "4"
        assert [row[-3] for row in four] == ["no", "no", "no", "yes"]
        assert four[-1][-5:-3] == ["600", "600"]
        # 4 starts x 6 rungs, the last rung of each evaluated at stride 0; docs/method.md: 0 of 24
        assert lines[-2] == "second halves: 0 of 24 trained,"
        assert lines[-1].startswith("4 more evaluated at stride 0")

    def test_prints_a_grid_of_ones_own(self, capsys: pytest.CaptureFixture[str]) -> None:
        from pw.run.trained_pairs import main

        assert main(["step_sampler=aligned", "sampling.num_steps=2", "sampling.timesteps=[900,300]"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[-5:-3] for line in lines[2:4]] == [["900", "600"], ["300", "300"]]

    def test_prints_the_steps_that_smaller_ones_take(self, capsys: pytest.CaptureFixture[str]) -> None:
        from pw.run.trained_pairs import main

        assert main(["step_sampler=aligned", "sampling.sizes=[0.5,0.5,1,1]"]) == 0
        steps = [line.split() for line in capsys.readouterr().out.splitlines() if " yes " in line or " no " in line]
        # a part ends in data: its last step is longer than that of the whole grid, 112
        assert [row[-5:-3] for row in steps] == [["1000", "68"], ["931", "930"], ["818", "218"], ["600", "600"]]


class TestTheDecoder:
    """How a video is decoded changes no training, but the clips that are sampled."""

    def test_and_auto_tiles_are_no_part_of_a_training(self, tmp_path: Path) -> None:
        (tmp_path / "tiny.safetensors").write_bytes(b"x")
        tiny = ("codec.decoder=tiny", f"codec.decoder_file={tmp_path / 'tiny.safetensors'}")
        plain = run_of("scale=2k")
        for same in (run_of("scale=2k", "codec.tile=768"), run_of("scale=2k", *tiny)):
            assert same.configuration_signature == plain.configuration_signature
        assert run_of("scale=2k", "codec.tile=512").configuration_signature != plain.configuration_signature
        assert run_of("scale=2k", *tiny).signature != plain.signature
        before = run_of("scale=2k", *tiny).signature
        (tmp_path / "other.safetensors").write_bytes(b"y")
        other = run_of("scale=2k", tiny[0], f"codec.decoder_file={tmp_path / 'other.safetensors'}")
        assert other.signature != before
