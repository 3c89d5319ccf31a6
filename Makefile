# PixelWizard. `make` lists the targets; the first one you call sets everything up (PyPI only, into this folder).
SHELL := /bin/bash
.ONESHELL:
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
UV_VERSION := 0.13.9
PY ?= python3
TOOLS := .tools/uv-$(UV_VERSION)
UV := $(TOOLS)/bin/uv
RUN := .venv/bin/python
PW := $(RUN) -m pw
args :=

# `key=value` reaches the program to the letter: make exports it unexpanded, a recipe names it inside quotes. What the
# environment has under the same name does not count. `args` is several words, which the shell splits and expands.
$(foreach key,$(.VARIABLES),$(if $(filter command,$(origin $(key))),$(eval override $(key) := $$(value $(key)))$(eval export $(key))))
given = $(foreach key,$(1),$(if $(filter override,$(origin $(key))),"$(key)=$$$(key)"))

export UV_SYSTEM_CERTS := 1
export UV_PYTHON_DOWNLOADS := never
export MLFLOW_DISABLE_TELEMETRY := true
export DO_NOT_TRACK := true
export WDS_SECURE := 1
unexport VIRTUAL_ENV
unexport PYTHONPATH
# torch, lightning and diffusers take twice as long to import where their bytecode is not kept
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup weights ablation ladder ablations status runs data latents start train sample plan generate serve bench gpu-check export coverage score table compare power judge record share open adopt lint-paper system vbench-env iqa notebooks notebooks-write mlflow mlflow-sync test test-slurm audit check format lock clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{ printf "  make %-15s %s\n", $$1, $$2 }'
	echo "key=value arrives as typed; args=\"…\" is several words, which the shell splits and expands: quote a name in it again"

setup: .venv/.ready ## make the environment (.venv) from requirements/dev.lock

weights: .venv/.ready ## fetch Wan2.2-TI2V-5B (2K, 4K), or what metrics need: make weights [what=metrics args="dry_run=true …"]
	@$(PW) weights $(call given,what) $(args)

ablation: .venv/.ready ## run one ablation to its table: make ablation name=ansc [args="seeds=5 arms=baseline,full dry_run=true …"]
	@$(PW) ablation $(call given,name) $(args)

ladder: .venv/.ready ## an ablation at one scale after another, stopped early: make ladder name=ansc [args="scales=tiny,small small.data.urls=DIR dry_run=true …"]
	@$(PW) ladder $(call given,name) $(args)

ablations: .venv/.ready ## list the ablations: what each varies, claims, and what came out
	@$(PW) ablations

status: .venv/.ready ## how far ablations are, read from their files: make status [name=ansc args="outputs=DIR"]
	@$(PW) status $(call given,name) $(args)

runs: .venv/.ready ## list trainings, samplings, ablations: make runs args="kind=train stage=hires since=2026-11-01"
	@$(PW) runs $(args)

data: .venv/.ready ## turn a folder of videos, or UltraVideo, into shards: make data path=DIR|name=ultravideo [args="scale=2k taste=5 dry_run=true …"]
	@$(PW) data $(call given,path name) $(args)

latents: .venv/.ready ## encode shards for training at proxy, 2k, 4k: make latents args="scale=2k [urls=DIR anchors=8 dry_run=true …]"
	@$(PW) latents $(args)

start: .venv/.ready ## train a start from its recipe, and write it with its card: make start name=hires [args="out=pw/starts …"]
	@$(PW) start $(call given,name) $(args)

train: .venv/.ready ## train one run: make train args="stage=hires objective=shortcut seed=1"
	@$(PW) train $(args)

sample: .venv/.ready ## sample one run (trains it first if need be): make sample args="… sampling.num_steps=4"
	@$(PW) sample $(args)

export: .venv/.ready ## a training as a folder that diffusers opens: make export run=SIGNATURE [args="out=DIR dtype=fp32 …"]
	@$(PW) export $(call given,run) $(args)

plan: .venv/.ready ## tokens, FLOPs, memory and time before anything loads: make plan scale=4k gpus=1x80GB [args="tflops=400 …"]
	@$(PW) plan $(call given,scale gpus) $(args)

bench: .venv/.ready ## measure on this machine, side by side: make bench what=generate|metrics|train [args="scales=2k …"]
	@$(PW) bench $(call given,what) $(args)

gpu-check: .venv/.ready ## what only a GPU can show, in parts of 8 minutes: make gpu-check [part=a|b|c args="fresh=true device=cpu …"]
	@$(PW) gpu-check $(call given,part) $(args)

generate: .venv/.ready ## prompt to 2K/4K video: make generate prompt="a heron over a lake" scale=2k hires=… [args="…"]
	@$(PW) generate $(call given,prompt prompts scale hires) $(args)

serve: .venv/.ready ## keep the networks of generate ready behind a JSON API on 127.0.0.1: make serve scale=2k hires=… [port=… args="…"]
	@$(PW) serve $(call given,port scale hires) $(args)

coverage: .venv/.ready ## which (timestep, stride) pairs a step sampler trains: make coverage args="step_sampler=aligned"
	@$(PW) coverage $(args)

score: .venv/.ready ## score videos: make score videos=DIR metrics=mhd_mse,niqe [out=scores.csv args="strict=true …"]
	@$(PW) score $(call given,videos metrics out) $(args)

table: .venv/.ready ## a table of the paper with ours beside it: make table name=table_2 [args="systems=DIR …"]
	@$(PW) table $(call given,name) $(args)

compare: .venv/.ready ## two runs or folders of videos, paired: make compare a=SIGNATURE|DIR b=SIGNATURE|DIR [args="metrics=…"]
	@$(PW) compare $(call given,a b) $(args)

power: .venv/.ready ## the smallest difference that n prompts and m seeds can show: make power ablation=ansc [args="prompts=100 seeds=3"]
	@$(PW) power $(call given,ablation) $(args)

judge: .venv/.ready ## compare clips blindly in the browser; votes enter the table: make judge name=ansc judge=anna [args="votes=60 export=DIR report=true …"]
	@$(PW) judge $(call given,name judge) $(args)

record: .venv/.ready ## keep an ablation's outcome in experiments/results, to be committed: make record name=ansc [args="outputs=DIR"]
	@$(PW) record $(call given,name) $(args)

share: .venv/.ready ## an ablation as one file for others: make share name=ansc [out=ansc.zip args="weights=true clips=true"]
	@$(PW) share $(call given,name out) $(args)

open: .venv/.ready ## show an ablation that somebody shared: make open file=ansc.zip [args="to=DIR"]
	@$(PW) open $(call given,file) $(args)

adopt: .venv/.ready ## take over the results of a shared ablation: make adopt file=ansc.zip [args="dry_run=true outputs=DIR"]
	@$(PW) adopt $(call given,file) $(args)

lint-paper: .venv/.ready ## recompute the paper's derived numbers and print what does not add up
	@$(PW) lint-paper $(args)

system: .venv/.ready ## generate with another system: make system name=wan2_2_5b args="prompts=FILE [dry_run=true …]"; no name: the list
	@$(PW) system $(call given,name) $(args)

vbench-env: $(UV) ## make the environment of VBench's worker (.venv-vbench, its own torch; about 7 GB)
	@$(UV) venv -q --allow-existing --python $(PY) .venv-vbench
	$(UV) pip sync -q --require-hashes requirements/vbench.lock --python .venv-vbench/bin/python

iqa: .venv/.ready ## add pyiqa to the environment, for MUSIQ (PolyForm Noncommercial licence)
	@$(UV) pip sync -q --require-hashes requirements/iqa.lock --python .venv/bin/python

notebooks: .venv/.ready ## open the notebooks on 127.0.0.1
	@.venv/bin/jupyter lab --ip 127.0.0.1 --no-browser notebooks $(args)

notebooks-write: .venv/.ready ## run the notebooks and keep what they show in them, to be committed [args="outputs=DIR name=3_runs"]
	@$(PW) notebooks-write $(args)

mlflow: .venv/.ready ## open the MLflow UI on 127.0.0.1:5000 (port=… to change)
	@$(PW) mlflow $(call given,port) $(args)

mlflow-sync: .venv/.ready ## log the tables that MLflow does not have, from their files [args="outputs=DIR"]
	@$(PW) mlflow-sync $(args)

test: .venv/.ready ## run the tests (under 6 minutes on 2 cores): make test [args="-k solver"]; the slow ones: args="-m slow"
	@$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(args)

test-slurm: .venv/.ready ## an ablation on a real SLURM of one node (Debian's packages, not installed; root; 10 minutes)
	@PW_TEST_SLURM=1 .ci/slurm $(RUN) -m pytest tests/engine/test_slurm.py $(args)

audit: $(UV) ## known vulnerabilities of what the lock pins (asks PyPI's JSON API; what it cannot look up is an error)
	@$(UV) tool run pip-audit@2.10.1 --strict --require-hashes --disable-pip -r requirements/dev.lock $(args)

check: .venv/.ready ## ruff and the type checker
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/ty check pw experiments benchmarks

format: .venv/.ready ## let ruff format and fix
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lock: $(UV) ## re-resolve requirements/*.lock from pyproject.toml (hashes, no download addresses)
	@$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --group dev pyproject.toml -q -o requirements/dev.lock
	cp requirements/dev.lock requirements/iqa.lock
	$(UV) pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	  --group dev --extra iqa pyproject.toml -q -o requirements/iqa.lock
	$(UV) pip compile --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes --no-emit-index-url \
	  --no-header requirements/vbench.in -q -o requirements/vbench.lock

clean: ## remove outputs/ (runs, videos, tables); keeps the environment
	@rm -rf outputs

write_command = printf '\#!%s\nimport sys\n\nfrom pw.cli import main\n\nif __name__ == "__main__":\n    sys.exit(main())\n' "$$PWD/.venv/bin/python" > .venv/bin/pw && chmod +x .venv/bin/pw

$(UV): requirements/uv.lock
	@echo "fetching uv $(UV_VERSION) into $(TOOLS)"
	$(PY) -m pip install -q --disable-pip-version-check --no-input --require-hashes --upgrade --target $(TOOLS) \
	  -r requirements/uv.lock 2> >(grep -vE 'WARNING' >&2)
	touch $@

.venv/.ready: $(UV) requirements/dev.lock
	@$(PY) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else f"{sys.executable} is Python {v[0]}.{v[1]}; this needs 3.11 or 3.12: make … PY=python3.11")'
	@echo "making .venv from requirements/dev.lock (about 6 GB, once)"
	$(UV) venv -q --allow-existing --python $(PY) .venv
	$(UV) pip sync -q --require-hashes requirements/dev.lock --python .venv/bin/python
	.venv/bin/python -c 'import os, site; open(os.path.join(site.getsitepackages()[0], "pixelwizard.pth"), "w").write(os.getcwd())'
	@$(write_command)
	touch $@

# a checkout whose environment is ready gets a newer one
setup test: .venv/bin/pw
.venv/bin/pw: Makefile | .venv/.ready
	@$(write_command)
