"""`pw share`, `pw open` and `pw adopt`: an ablation as one file, and back, and what a hostile file gets to do."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import posixpath
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest
from filelock import FileLock
from small_shards import write_noise

from experiments.engine.job import all_jobs, jobs_to_run
from experiments.engine.outcome.table import make_table
from experiments.engine.plan import Plan, make_plan, parse
from experiments.engine.share import adopt_command, open_command, share_command
from experiments.engine.share.adopt_command import AdoptOptions, outlook
from experiments.engine.status import cells_of, outline
from pw.io.files import digest
from pw.io.manifest import check, write_mark
from pw.train.record import training_folder

pytestmark = pytest.mark.slow  # a small ablation is run

ROOT = Path(__file__).parents[2]
SENDER = "bob-the-sender"
SIZES = ["start.updates=2", "train.updates=2", "train.batch_size=2", "sampling.count=2", "sampling.solution_steps=4"]
WORDS = ["name=ansc", "seeds=1", "arms=original,full", *SIZES, "sampling.solution_count=2", "data=shards"]


@dataclass(frozen=True)
class Shared:
    """An ablation that was run on shards in a folder of its sender, shared without weights and clips, and with them."""

    outputs: Path
    urls: str
    lean: Path
    full: Path

    def plan(self, outputs: Path, *words: str) -> Plan:
        return make_plan(parse([*WORDS, self.urls, *words, f"outputs={outputs}"]))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Shared:
    home = tmp_path_factory.mktemp("home") / SENDER
    (home / "shards").mkdir(parents=True)
    urls = f"data.urls={write_noise(home / 'shards', 4, 4)}/*.tar"
    shared = Shared(home / "outputs", urls, home / "ansc.zip", home / "full.zip")
    command = [sys.executable, "-m", "pw", "ablation", *WORDS, urls, f"outputs={shared.outputs}", "tracking=none"]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=900, check=True)
    for out, more in ((shared.lean, []), (shared.full, ["weights=true", "clips=true"])):
        assert share_command.main(["name=ansc", f"out={out}", f"outputs={shared.outputs}", *more]) == 0
    return shared


def adopt(file: Path, outputs: Path, *words: str) -> int:
    return adopt_command.main([str(file), f"outputs={outputs}", *words])


def contents(folder: Path) -> dict[str, bytes]:
    """The results in an outputs folder: name -> bytes."""
    kinds = ("train", "videos", "reference", "scores")
    files = [path for kind in kinds for path in (folder / kind).rglob("*") if path.is_file()]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.name not in (".lock", "adopted.json")}


class TestASharedFile:
    def test_has_all_results_to_the_byte_where_they_name_no_folder(self, shared: Shared) -> None:
        made = contents(shared.outputs)
        with ZipFile(shared.full) as archive:
            there = {name: archive.read(name) for name in archive.namelist() if name in made}
        assert there.keys() == made.keys()
        differing = {Path(name).name for name in made if there[name] != made[name]}
        assert differing == {"config.yaml", "done.json"}  # data.urls, and the hash of config.yaml
        assert all(there[name] == made[name] for name in made if name.startswith(("reference", "scores")))

    @pytest.mark.parametrize("which", ["lean", "full"])
    def test_says_nothing_of_its_senders_machine(self, shared: Shared, which: str) -> None:
        with ZipFile(getattr(shared, which)) as archive:
            found = [name for name in archive.namelist() if SENDER.encode() in archive.read(name)]
            texts = [archive.read(name) for name in archive.namelist() if name.endswith((".json", ".html", ".yaml"))]
        assert not found
        assert "data.urls=./*.tar" in json.loads(ZipFile(getattr(shared, which)).read("manifest.json"))["words"]
        assert not any(str(folder).encode() in text for text in texts for folder in (ROOT, shared.outputs.parents[1]))

    def test_lists_what_is_in_it_by_hash_and_what_is_not(self, shared: Shared) -> None:
        with ZipFile(shared.lean) as archive:
            manifest = json.loads(archive.read("manifest.json"))
            hashes = {
                n: hashlib.sha256(archive.read(n)).hexdigest() for n in archive.namelist() if n != "manifest.json"
            }
        assert {name: entry["sha256"] for name, entry in manifest["members"].items()} == hashes
        run = shared.plan(shared.outputs).arms[0].first
        assert manifest["results"][f"train/{run.training_signature}"] == "train original seed 0"
        assert manifest["trainings"][run.training_signature] == {"key": run.training_key, "code": run.training_code}
        weights = len([*shared.outputs.glob("train/*/*.safetensors")])
        assert f"{weights} files of weights (weights=true)" in manifest["left_out"]

    def test_is_the_same_when_made_again_and_stores_clips_as_they_are(self, shared: Shared, tmp_path: Path) -> None:
        words = ["name=ansc", f"out={tmp_path / 'x.zip'}", f"outputs={shared.outputs}", "weights=true", "clips=true"]
        assert share_command.main(words) == 0
        assert share_command.main(words) == 0  # replaces its own kind
        assert (tmp_path / "x.zip").read_bytes() == shared.full.read_bytes()
        with ZipFile(shared.full) as archive:
            packed = {i.filename.rpartition(".")[2]: i.compress_type for i in archive.infolist()}
        assert packed["mkv"] == packed["mp4"] == packed["safetensors"] == ZIP_STORED
        assert packed["json"] == packed["html"] == ZIP_DEFLATED

    def test_does_not_replace_a_file_of_another_kind(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "notes.zip").write_text("dear diary")
        assert share_command.main(["name=ansc", f"out={tmp_path}/notes.zip", f"outputs={shared.outputs}"]) == 2
        assert "exists and is no file of `pw share`; choose another name" in capsys.readouterr().err
        assert (tmp_path / "notes.zip").read_text() == "dear diary"

    def test_is_not_written_where_a_result_is_damaged(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        path = next(shared.outputs.glob("scores/*/scores.csv"))
        text = path.read_text()
        path.write_text(f"{text}1")
        try:
            assert share_command.main(["name=ansc", f"out={tmp_path}/x.zip", f"outputs={shared.outputs}"]) == 2
        finally:
            path.write_text(text)
        assert f"{path}: has " in capsys.readouterr().err
        assert not [*tmp_path.iterdir()]

    def test_needs_a_table(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert share_command.main(["name=ansc", f"out={tmp_path}/x.zip", f"outputs={tmp_path}"]) == 2
        assert (
            f"name=ansc: has no table and page in {tmp_path}/ansc; `make ablation name=ansc`" in capsys.readouterr().err
        )


class TestOpening:
    @pytest.mark.parametrize("which", ["lean", "full"])
    def test_shows_the_page_with_all_that_it_links_to(
        self, shared: Shared, which: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert open_command.main([str(getattr(shared, which)), f"to={tmp_path / 'x'}", "browser=false"]) == 0
        output = capsys.readouterr().out
        page = tmp_path / "x" / "ansc" / "index.html"
        assert output.splitlines()[-1] == str(page)
        assert "– not run: noise-span calibration adds to the bias" in output
        text = page.read_text()
        sources = re.findall(r'"source": "([^"]+)"', text)
        media = re.findall(r'"(?:mp4|strip|preview)": "([^"]+)"', text)
        assert bool(sources) == (which == "full")
        links = {*sources, *(f"page/{name}" for name in media), *re.findall(r'(?:href|src)="([^"#:]+)"', text)}
        assert len(links) > 20
        targets = [posixpath.normpath(f"ansc/{link}") for link in links]
        assert not [target for target in targets if not (tmp_path / "x" / target).is_file()]

    def test_a_second_time_uses_the_folder_unless_something_is_gone(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        words = [f"file={shared.lean}", f"to={tmp_path / 'x'}", "browser=false"]
        assert open_command.main(words) == 0
        inode = (tmp_path / "x").stat().st_ino
        assert open_command.main(words) == 0
        assert (tmp_path / "x").stat().st_ino == inode
        (tmp_path / "x" / "ansc" / "table.md").unlink()
        assert open_command.main(words) == 2
        assert f"to={tmp_path / 'x'}: exists and is not what is in ansc.zip" in capsys.readouterr().err


class TestAdopting:
    def test_leaves_an_ablation_nothing_to_do(self, shared: Shared, tmp_path: Path) -> None:
        assert adopt(shared.full, tmp_path) == 0
        made, taken = contents(shared.outputs), contents(tmp_path)
        assert taken.keys() == made.keys()
        assert all(taken[name] == made[name] for name in made if not name.endswith(("config.yaml", "done.json")))
        assert not jobs_to_run(all_jobs(shared.plan(tmp_path))[0], tmp_path)
        assert not [*tmp_path.glob(".adopting/*")]

    def test_is_told_by_record_and_by_the_tables_notes(self, shared: Shared, tmp_path: Path) -> None:
        adopt(shared.full, tmp_path)
        plan = shared.plan(tmp_path)
        jobs, rows = all_jobs(plan)
        sha = hashlib.sha256(shared.full.read_bytes()).hexdigest()
        record = json.loads((training_folder(plan.arms[0].first, tmp_path) / "adopted.json").read_text())
        assert (record["file"], record["sha256"]) == ("full.zip", sha)
        count = {kind: sum(job.kind == kind for job in jobs) for kind in ("train", "sample", "score")}
        [note] = [note for note in make_table(plan, rows, {})["notes"] if note.startswith("adopted from")]
        assert note.startswith(f"adopted from full.zip (sha256 {sha[:12]}, commit ")
        assert note.endswith("{0} of {0} trainings, {1} of {1} samplings, {2} of {2} scores".format(*count.values()))

    def test_is_told_to_the_next_who_gets_it_too(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The table was made from results of others, and is shared again."""
        adopt(shared.full, tmp_path)
        shutil.copytree(shared.outputs / "ansc", tmp_path / "ansc")
        assert share_command.main(["name=ansc", f"out={tmp_path}/x.zip", f"outputs={tmp_path}"]) == 0
        assert open_command.main([f"{tmp_path}/x.zip", "browser=false"]) == 0
        assert "adopted from full.zip (sha256 " in capsys.readouterr().out
        adopt(tmp_path / "x.zip", tmp_path / "next")
        record = json.loads(next(tmp_path.glob("next/scores/*/adopted.json")).read_text())
        assert record["file"] == "x.zip"
        assert record["adopted_there"][0].startswith("adopted from full.zip (sha256 ")

    def test_tells_scores_that_were_made_again_from_those_adopted(self, shared: Shared, tmp_path: Path) -> None:
        adopt(shared.lean, tmp_path)
        plan = shared.plan(tmp_path)
        rows = all_jobs(plan)[1]
        path = rows[-1].job.score["out"] / "scores.json"
        write_mark(path, check(path) | {"metrics": {"psd": 1.0}}, [path.with_name("scores.csv")])
        [note] = [note for note in make_table(plan, rows, {})["notes"] if note.startswith("adopted from")]
        assert note.endswith(f"elsewhere: {len(rows) - 1} of {len(rows)} scores")

    def test_of_scores_alone_spares_what_only_they_were_made_from(self, shared: Shared, tmp_path: Path) -> None:
        assert adopt(shared.lean, tmp_path) == 0
        assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["scores"]
        plan = shared.plan(tmp_path)
        jobs, rows = all_jobs(plan)
        assert not jobs_to_run(jobs, tmp_path)
        assert {cell.state for cell in cells_of(outline(plan, jobs, rows), tmp_path)} == {"done"}
        more = jobs_to_run(all_jobs(shared.plan(tmp_path, "seeds=2"))[0], tmp_path)
        trained = [job.label for job in more if job.kind == "train"]
        assert trained == ["train start hires", "train original seed 1", "train full seed 1"]

    def test_keeps_what_is_here_and_skips_what_is_being_trained(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        here, running = (training_folder(arm.first, tmp_path) for arm in shared.plan(tmp_path).arms)
        here.mkdir(parents=True)
        running.mkdir()
        (here / "config.yaml").write_text("unfinished")
        with FileLock(running / ".lock"):
            assert adopt(shared.full, tmp_path) == 1
        output = capsys.readouterr().out
        assert f"skipped train/{here.name}: is unfinished here; remove {here} to take it" in output
        assert f"skipped train/{running.name}: is being made here right now" in output
        assert (here / "config.yaml").read_text() == "unfinished"
        assert adopt(shared.full, tmp_path) == 1
        assert "adopted 1 trainings; already here: 1 trainings" in capsys.readouterr().out  # only a lock was there
        check(running / "done.json", thorough=True)

    def test_only_tried_writes_nothing_and_says_what_is_left(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert adopt(shared.full, tmp_path / "x", "dry_run=true", shared.urls, "seeds=2") == 0
        output = capsys.readouterr().out
        assert "would adopt 3 trainings" in output
        assert "would train 2 of 5" in output
        assert "without results in the file: original seed 1, full seed 1" in output
        assert not (tmp_path / "x").exists()

    def test_names_runs_that_other_code_made(self, shared: Shared, tmp_path: Path) -> None:
        plan = shared.plan(tmp_path)
        run = plan.arms[1].first
        with ZipFile(shared.full) as archive:
            manifest = json.loads(archive.read("manifest.json"))
        manifest["trainings"] = {"01234567": {"key": run.training_key, "code": "other"}}
        lines = outlook(manifest, AdoptOptions(outputs=tmp_path, overrides=(shared.urls,)), [])
        there = f"made by other code there: full seed 0 (01234567, here {run.training_signature})"
        assert [line for line in lines if there in line and "code=as_trained" in line]

    def test_of_a_wrong_override_is_refused_before_anything_is_written(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert adopt(shared.full, tmp_path / "x", "dryrun=true") == 2
        assert "there is no key dryrun" in capsys.readouterr().err
        assert not (tmp_path / "x").exists()


# ---- files that `pw share` did not write


@dataclass
class Forgery:
    """A shared file to be changed: contents by name, entries to be added as they are, and its manifest."""

    files: dict[str, bytes]
    manifest: dict[str, Any]
    extra: list[tuple[ZipInfo, bytes]] = field(default_factory=list)

    def add(self, name: str, data: bytes = b"", mode: int = stat.S_IFREG | 0o644) -> None:
        info = ZipInfo(name)
        info.external_attr, info.compress_type = mode << 16, ZIP_DEFLATED
        self.extra.append((info, data))

    def find(self, pattern: str) -> str:
        return next(name for name in self.files if re.fullmatch(pattern, name))

    def replace(self, name: str, data: bytes, *, in_mark: bool = True) -> None:
        """Replace a file of a training, in the manifest too, and in the mark."""
        self.files[name] = data
        entry = self.manifest["members"][name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        if in_mark:
            path = f"{posixpath.dirname(name)}/done.json"
            mark = json.loads(self.files[path])
            mark["files"][posixpath.basename(name)] = entry
            del mark["checksum"]
            self.replace(path, json.dumps({**mark, "checksum": digest(mark, 64)}).encode(), in_mark=False)

    def write(self, path: Path) -> None:
        with ZipFile(path, "w") as archive:
            for name, data in self.files.items():
                archive.writestr(ZipInfo(name), data)
            for info, data in self.extra:
                archive.writestr(info, data)
            archive.writestr(ZipInfo("manifest.json"), json.dumps(self.manifest))


def _lie_about_a_mark(forgery: Forgery) -> None:
    name = forgery.find(r"train/\w+/done.json")
    forgery.replace(name, forgery.files[name].replace(b'"updates": 2', b'"updates": 9'), in_mark=False)


WEIGHTS = r"train/\w+/ema.safetensors"
FORGERIES: dict[str, tuple[Callable[[Forgery], Any], str]] = {
    "an absolute path": (lambda f: f.add("/etc/cron.d/x"), "'/etc/cron.d/x' is no file of a shared ablation"),
    "a path upwards": (lambda f: f.add("train/../../x.yaml"), "'train/../../x.yaml' is no file of a shared"),
    "a link": (lambda f: f.add("ansc/table.pdf", b"/etc/passwd", stat.S_IFLNK), "'ansc/table.pdf' in it is a link"),
    "a folder": (lambda f: f.add("train/"), "'train/' in it is a link, a folder or a device"),
    "a name that differs by case": (lambda f: f.add("ansc/INDEX.html"), "'ansc/INDEX.html' is no file of a shared"),
    "no signature": (lambda f: f.add("train/0123456x/config.yaml"), "'train/0123456x/config.yaml' is no file of"),
    "code": (lambda f: f.add("train/01234567/evil.py"), "'train/01234567/evil.py' is no file of a shared"),
    "bytecode": (lambda f: f.add("ansc/__pycache__/x.pyc"), "'ansc/__pycache__/x.pyc' is no file of a shared"),
    "a pickle": (lambda f: f.add("train/01234567/last.ckpt"), "'train/01234567/last.ckpt' is no file of a shared"),
    "a folder of another ablation": (lambda f: f.add("beta/index.html"), "'beta/index.html' is no file of a shared"),
    "an unlisted file": (lambda f: f.add("scores/01234567/scores.csv"), "scores.csv' is not as its manifest says"),
    "a file less": (lambda f: f.files.pop("ansc/table.md"), "'ansc/table.md' is not as its manifest says"),
    "a file twice": (lambda f: f.add("ansc/table.md"), "'ansc/table.md' is in it twice"),
    "another content": (
        lambda f: f.files.update({"ansc/table.md": f.files["ansc/table.md"][::-1]}),
        "ansc/table.md has another content than its manifest says",
    ),
    "a bomb": (lambda f: f.add("scores/01234567/scores.csv", bytes(2**26 + 1)), "unpacks to 67,108,865 bytes"),
    "a newer version": (lambda f: f.manifest.update(version=2), "of version 2, this suite reads 1; update"),
    "another program's manifest": (lambda f: f.manifest.update(format="x"), "its manifest.json is of another program"),
    "a manifest of other types": (lambda f: f.manifest.update(words=[1]), "holds values that this suite does"),
    "an ablation that is a path": (lambda f: f.manifest.update(ablation="../x"), "holds values that this suite does"),
    "weights that are a pickle": (
        lambda f: f.replace(f.find(WEIGHTS), pickle.dumps({"ema": [0.0] * 99})),
        "ema.safetensors is no safetensors file",
    ),
    "weights that are cut": (
        lambda f: f.replace(f.find(WEIGHTS), f.files[f.find(WEIGHTS)][:-4]),
        "ema.safetensors is no safetensors file",
    ),
    "a file of which the mark knows nothing": (
        lambda f: f.replace(f.find(r"train/\w+/config.yaml"), b"# pw train\n", in_mark=False),
        "config.yaml in it is not what its mark says",
    ),
    "a mark that was changed": (_lie_about_a_mark, "done.json in it is no mark of a result"),
}  # fmt: skip


class TestAForgedFile:
    @pytest.mark.parametrize("what", FORGERIES)
    def test_is_refused_by_name_and_nothing_of_it_is_written(
        self, what: str, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        change, message = FORGERIES[what]
        with ZipFile(shared.full) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        forgery = Forgery(files, json.loads(files.pop("manifest.json")))
        change(forgery)
        with pytest.warns(UserWarning, match="Duplicate") if what == "a file twice" else io.StringIO():
            forgery.write(tmp_path / "x.zip")
        assert adopt(tmp_path / "x.zip", tmp_path / "outputs") == 2
        [line] = capsys.readouterr().err.splitlines()
        assert message in line
        assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]

    def test_that_was_only_changed_in_this_way_would_be_taken(self, shared: Shared, tmp_path: Path) -> None:
        """A forgery without a change is no forgery: what is refused above is the change."""
        with ZipFile(shared.full) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        forgery = Forgery(files, json.loads(files.pop("manifest.json")))
        name = forgery.find(WEIGHTS)
        forgery.replace(name, forgery.files[name])
        forgery.write(tmp_path / "x.zip")
        assert adopt(tmp_path / "x.zip", tmp_path / "outputs") == 0

    @pytest.mark.parametrize("part", [0.0, 0.5, 0.999])
    def test_that_is_truncated_is_refused(
        self, part: float, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        data = shared.lean.read_bytes()
        (tmp_path / "x.zip").write_bytes(data[: int(part * len(data))])
        for verb in (adopt_command.main, open_command.main):
            assert verb([str(tmp_path / "x.zip")]) == 2
            assert "x.zip: is damaged, or no zip file" in capsys.readouterr().err

    def test_that_says_it_is_shorter_than_it_is_gives_no_more_than_it_says(
        self, shared: Shared, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The list at the end of a zip, and the manifest, say 5 bytes of a deflated text that has more."""
        with ZipFile(shared.lean) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        forgery = Forgery(files, json.loads(files.pop("manifest.json")))
        forgery.manifest["members"]["ansc/table.md"] = {"size": 5, "sha256": hashlib.sha256(b"| | P").hexdigest()}
        forgery.add("ansc/table.md", files.pop("ansc/table.md"))
        forgery.write(tmp_path / "x.zip")
        data = bytearray((tmp_path / "x.zip").read_bytes())
        entry = data.rindex(b"ansc/table.md") - 46  # of the central directory; the size is at 24
        assert data[entry : entry + 4] == b"PK\x01\x02"
        data[entry + 24 : entry + 28] = (5).to_bytes(4, "little")
        (tmp_path / "x.zip").write_bytes(data)
        assert open_command.main([str(tmp_path / "x.zip"), "browser=false"]) == 2
        assert "ansc/table.md in it is damaged" in capsys.readouterr().err
        assert [path.name for path in tmp_path.iterdir()] == ["x.zip"]
