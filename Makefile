# Every task of a contributor. `make help` lists them; each may be repeated, and does not make again what is there.
#
# Variables, as in `make demo FOLDER=~/photos`:
#   FOLDER    demo: a folder with your own pictures; without it the sample in examples/ is used
#   ONCE      demo: 1 goes through every step, searches once and stops, instead of serving until Ctrl-C
#   PYTHON    the Python that .venv is made with, 3.11 or newer; without it the first suitable one on PATH
#   PIP_ARGS  more words for `pip install`, such as the index of the smaller CPU-only builds of PyTorch
#   TESTS     test: what pytest is given, as in TESTS="tests/images -x"; without it everything, in several processes
#   OUT       dataset: where the class folders go (data/fashion-mnist)
#   PEER_ARGS serve-peers, search-peers: more words for the benchmark, such as --quick
#   MINUTES   soak: how long; without it 10
#   CRASH_ROUNDS, CRASH_SEED  crash: how often the server is killed, and what is drawn by chance
#   FUZZ_CASES, FUZZ_SEED  fuzz: how many files, and which ones
#   GPU       gpu: the number of the GPU to use, as CUDA counts them; without it the first
#   GPU_ARGS  gpu: more words for benchmarks/gpu.py

SHELL := bash
VENV := .venv
BIN := $(VENV)/bin
OUT ?= data/fashion-mnist
# The shell would not expand a ~ inside the quotes that a folder with spaces needs.
FOLDER_PATH = $(patsubst ~%,$(HOME)%,$(FOLDER))
# A test that hangs fails after ten minutes, with the stacks of its threads; its process ends if it hangs on. The slowest
# test takes a minute on two cores.
TIMED := --timeout 600 --max-worker-restart 0 \
	--override-ini faulthandler_timeout=900 --override-ini faulthandler_exit_on_timeout=true
# One process for each core; the tests of a file stay together, as they share servers and trained encoders.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(TIMED)
export PYTHON PIP_ARGS

.DEFAULT_GOAL := help
.NOTPARALLEL: # two pips at once would spoil one environment
.PHONY: help demo test quick lint fix proto client dataset gpu peers quality serve-peers search-peers overload soak crash fuzz

help: ## list these tasks
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.with-train ## train on a folder of pictures, export, serve: FOLDER=~/photos, ONCE=1
	$(BIN)/embedserve demo $(if $(FOLDER),"$(FOLDER_PATH)") $(if $(filter 1,$(ONCE)),--once)

test: lint ## everything that needs no GPU: lint, types, protos, tests, the built wheel
	bash scripts/buf_lint.sh $(BIN)/python
	$(BIN)/python -m pytest $(or $(TESTS),$(PARALLEL))

quick: $(VENV)/.with-dev ## the tests that need neither PyTorch nor ten seconds: under two minutes on two cores
	$(BIN)/python -m pytest -q $(PARALLEL) --without-torch -m "not slow"

lint: $(VENV)/.with-train $(VENV)/.with-dev ## style, format, types and words, as CI checks them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python scripts/sync_client.py --check
	$(BIN)/mypy
	MYPYPATH=scripts $(BIN)/mypy scripts/*.py
	$(BIN)/python scripts/words.py

fix: $(VENV)/.with-dev ## mend style and format where ruff can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

proto: $(VENV)/.with-dev ## write embedserve/v1 and docs/wire.md again from protos/
	$(BIN)/python scripts/proto.py

client: $(VENV)/.with-dev ## write embedserve/client/sync*.py again from aio*.py
	$(BIN)/python scripts/sync_client.py

dataset: $(VENV)/.with-train ## the whole of Fashion-MNIST as class folders of PNGs: OUT=data/fashion-mnist
	$(BIN)/python scripts/fashion_mnist.py "$(OUT)"

peers: .venv-peers/.with-peers ## losses beside those of lightly, in an environment of its own
	.venv-peers/bin/python -m pytest tests/lightly

serve-peers: $(VENV)/.with-train .venv-serve-peers/.with-peers ## embedserve beside mosec, LitServe, BentoML, Ray Serve, MLServer: twenty minutes
	$(BIN)/python benchmarks/serve_peers.py $(PEER_ARGS)

search-peers: $(VENV)/.with-train .venv-search-peers/.with-peers ## embedserve beside FAISS, hnswlib, Chroma, LanceDB, pgvector and others: an hour
	$(BIN)/python benchmarks/search_peers.py $(PEER_ARGS)

overload: $(VENV)/.with-train ## four times the load that a server can take: goodput, refusals, memory; two minutes
	$(BIN)/python benchmarks/overload.py --json benchmarks/results/overload.json

soak: $(VENV)/.with-train ## mixed and hostile traffic with encoders replaced, every answer checked: MINUTES=10
	$(BIN)/python benchmarks/soak.py --minutes $(or $(MINUTES),10) --json benchmarks/results/soak.json

crash: $(VENV)/.with-train $(VENV)/.with-dev ## kill -9, power cuts, failing and full disks, damaged files: CRASH_ROUNDS=200, CRASH_SEED=1; a quarter of an hour
	CRASH_ROUNDS=$(or $(CRASH_ROUNDS),200) CRASH_SEED=$(or $(CRASH_SEED),1) CRASH_THOROUGH=4 CRASH_SECONDS=60 \
		CRASH_JSON=benchmarks/results/crash.json $(BIN)/python -m pytest tests/durability

fuzz: $(VENV)/.with-dev ## a hundred thousand damaged images and messages: FUZZ_CASES=100000, FUZZ_SEED=0
	FUZZ_CASES=$(or $(FUZZ_CASES),100000) FUZZ_SEED=$(or $(FUZZ_SEED),0) $(BIN)/python -m pytest -s tests/images/test_fuzz.py

quality: dataset ## all five methods on Fashion-MNIST beside the baselines: two hours on two cores
	$(BIN)/python benchmarks/quality.py "$(OUT)" --out benchmarks/results/quality.json

gpu: ## GPU tests and benchmarks, under ten minutes, nothing downloaded; skipped without a CUDA GPU
	@GPU="$(GPU)" bash scripts/gpu.sh $(GPU_ARGS)

# One stamp for each extra, so that `make proto` does not wait for PyTorch. A changed pyproject.toml installs again.
$(VENV)/.with-%: pyproject.toml scripts/venv.sh
	@bash scripts/venv.sh $(VENV) $*
	@touch $@

.venv-peers/.with-peers: pyproject.toml scripts/venv.sh
	@bash scripts/venv.sh .venv-peers train,dev,peers
	@touch $@

.venv-serve-peers/.with-peers: benchmarks/peers/requirements.txt benchmarks/peers/requirements-mlserver.txt
	@echo "Installing other servers into .venv-serve-peers: about 1.1 GB on disk"
	@$(BIN)/python -m venv .venv-serve-peers
	@.venv-serve-peers/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r $<
	@$(BIN)/python -m venv .venv-serve-peers/mlserver
	@.venv-serve-peers/mlserver/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r $(word 2,$^)
	@touch $@

.venv-search-peers/.with-peers: benchmarks/peers/search/requirements.txt benchmarks/peers/search/requirements-hnswlib.txt
	@echo "Installing other systems into .venv-search-peers: about 1.1 GB on disk"
	@$(BIN)/python -m venv .venv-search-peers
	@.venv-search-peers/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r $<
	@.venv-search-peers/bin/python -m pip install --disable-pip-version-check $(PIP_ARGS) -r $(word 2,$^) || \
		echo "hnswlib is left out: it could not be built"
	@touch $@
