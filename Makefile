# Everything runs in .venv, which is made from nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test bytecode test-all test-oldest test-processors test-wild test-peft test-quantized test-models evidence habits rates docs lint format wheel backbone language-model clean

help: ## List what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

setup: $(STAMP) ## Make the environment

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)  # what is no longer asked for is gone, too
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --group dev --editable '.[all,sweep]'
	@touch $@

demo: setup ## Adapt the shipped backbone to handwritten digits, ten labels a class
	$(BIN)/lightning-peft -m experiment=demo

# one thread a process: torch's threads of two processes would only wait for each other; in the order
# of the files, since a file of few tests can be a long one, which must not be the last; bytecode is
# kept where nothing else looks, also for those who keep none: a process of a test compiles torch and
# its companions anew otherwise, which takes it longer than all else
TEST := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode \
	$(BIN)/pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder

test: setup ## Run every check
	$(MAKE) --no-print-directory --jobs=2 lint bytecode
	$(TEST) -m "not slow"

# the linters leave one core free, and both processes of tests would compile the same files
bytecode: setup
	@OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode \
		$(BIN)/python -W ignore -c "import $(HEAVY)"

HEAVY := torch, lightning.pytorch, torchmetrics, timm, transformers, sklearn.metrics, hydra.main, matplotlib.pyplot, \
	torch._dynamo, torch.distributed.fsdp

# the extra datasets comes only here: with its pandas every import of scikit-learn takes a second more
test-all: lint ## Run every check, the slow tests included
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[datasets]'
	$(TEST)

# such as ARGS='--threads 1 --select tests/caching'
test-processors: setup ## Run the tests with the kernels of other processors, on one thread and two
	$(BIN)/python tools/processors.py --any-processor $(ARGS)

# lowest-direct takes the lower bounds of pyproject.toml. torchvision comes with timm and decides which
# torch can be had, so that it is named too; pytest is only what runs the tests.
OLDEST := .venv-oldest
OLD_BIN := $(OLDEST)/bin
$(OLDEST)/.installed: pyproject.toml | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(OLDEST)
	VIRTUAL_ENV=$(OLDEST) $(BIN)/uv pip install --quiet --resolution lowest-direct \
		--editable '.[data,text]' 'torchvision>=0.26' 'pytest>=8.4'
	@touch $@

CORE_TESTS := tests/files/test_adapter_file.py tests/files/test_formats.py tests/files/test_files_from_strangers.py \
	tests/adaptation/test_handle.py tests/lightning/test_hooks.py tests/anatomy/test_targets.py tests/anatomy/test_backbone.py tests/lightning/test_schedules.py \
	tests/adaptation/test_plan.py tests/lightning/callbacks/test_peft.py tests/kernels tests/methods

# releases of different years warn of each other, which says nothing of this package
test-oldest: $(OLDEST)/.installed ## Run the core of the tests with the oldest supported releases
	OMP_NUM_THREADS=1 $(OLD_BIN)/python -m pytest -m "not slow" \
		-W default::DeprecationWarning -W default::FutureWarning \
		-W "ignore:The loaded checkpoint was produced with Lightning" $(CORE_TESTS)
	rm -rf build/both-ways
	$(OLD_BIN)/python benchmarks/peft_both_ways.py write build/both-ways/oldest
	$(BIN)/python benchmarks/peft_both_ways.py read build/both-ways/oldest
	$(BIN)/python benchmarks/peft_both_ways.py write build/both-ways/newest
	$(OLD_BIN)/python benchmarks/peft_both_ways.py read build/both-ways/newest

# modules of published packages, which are in an environment of their own; its torch is that of .venv.
# bytecode is kept in build, as for the other tests
WILD := .venv-wild
$(WILD)/.installed: tests/wild/requirements.txt tests/wild/constraints.txt pyproject.toml | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(WILD)
	VIRTUAL_ENV=$(WILD) $(BIN)/uv pip install --quiet --constraint tests/wild/constraints.txt \
		--requirement tests/wild/requirements.txt --editable .
	@touch $@

# such as ARGS='--select torchgeo,lightly/BYOL', or --again for everything
test-wild: $(WILD)/.installed ## Try the callback on LightningModules of published packages
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode-wild \
		$(WILD)/bin/python -W ignore -m tests.wild.run $(ARGS)
	$(WILD)/bin/python -m tests.wild.page

# real pretrained models and data come from the package index, into an environment of their own; such
# as ARGS='--only cells lora full 25', and --list for what is left and how long it takes
EVIDENCE := .venv-evidence
$(EVIDENCE)/.installed: benchmarks/evidence/requirements.txt benchmarks/evidence/constraints.txt pyproject.toml | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(EVIDENCE)
	VIRTUAL_ENV=$(EVIDENCE) $(BIN)/uv pip install --quiet --constraint benchmarks/evidence/constraints.txt \
		--requirement benchmarks/evidence/requirements.txt --editable '.[all]'
	@touch $@

evidence: $(EVIDENCE)/.installed ## Compare methods on real models and data with few labels
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode-evidence \
		$(EVIDENCE)/bin/python -W ignore -m benchmarks.evidence.run $(ARGS)
	if [ -f benchmarks/results/evidence.jsonl ]; then $(EVIDENCE)/bin/python -m benchmarks.evidence.page; fi

habits: $(EVIDENCE)/.installed ## Measure five habits and the ranking of models on the same tasks
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode-evidence \
		$(EVIDENCE)/bin/python -W ignore -m benchmarks.habits.run $(ARGS)
	if [ -f benchmarks/results/habits.jsonl ]; then $(EVIDENCE)/bin/python -m benchmarks.habits.page; fi

rates: $(EVIDENCE)/.installed ## Try the learning rates of the methods on eight pretrained networks
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode-evidence \
		$(EVIDENCE)/bin/python -W ignore -m benchmarks.rates.run $(ARGS)
	if [ -f benchmarks/results/rates.jsonl ]; then $(EVIDENCE)/bin/python -m benchmarks.rates.page; fi

# such as ARGS='--only "decoder.*Vera"'; peft's tests come from its source release, into build
test-peft: setup ## Run the configurations of peft's own tests through peft and this package
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode \
		$(BIN)/python -W ignore -m tests.peft_suite.run $(ARGS); \
		status=$$?; $(BIN)/python -m tests.peft_suite.page && exit $$status

# torchao and HQQ, in an environment of their own; its torch is that of .venv
QUANTIZED := .venv-quantized
$(QUANTIZED)/.installed: tests/quantized/requirements.txt constraints.txt pyproject.toml | setup
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(QUANTIZED)
	VIRTUAL_ENV=$(QUANTIZED) $(BIN)/uv pip install --quiet --constraint constraints.txt \
		--requirement tests/quantized/requirements.txt --editable '.[quantized]' pytest
	@touch $@

# such as ARGS='-k hqq'
test-quantized: $(QUANTIZED)/.installed ## Run the tests of quantised bases with torchao and HQQ
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode-quantized \
		$(QUANTIZED)/bin/python -m pytest -W ignore tests/quantized/other $(ARGS)

# such as ARGS='--only Mixtral'; a run that was stopped goes on, and --again measures everything
test-models: setup ## Train, resume, load and merge LoRA on small models of transformers
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= PYTHONPYCACHEPREFIX=$(CURDIR)/build/bytecode \
		$(BIN)/python -W ignore -m tests.small_models.run $(ARGS); \
		status=$$?; $(BIN)/python -m tests.small_models.page && exit $$status

# the site is read from the sources and needs no torch: its environment takes seconds
DOCS := .venv-docs
$(DOCS)/.installed: docs/site/requirements.txt docs/site/constraints.txt
	$(PYTHON) -m venv --clear $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint docs/site/constraints.txt --requirement docs/site/requirements.txt
	@touch $@

docs: $(DOCS)/.installed ## Build the documentation site into build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(DOCS)/bin/mkdocs build --strict --quiet
	$(DOCS)/bin/python docs/site/check.py build/site

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the wheel comes from the sdist, and runs where only what it requires is installed
wheel: setup ## Build the sdist and the wheel into dist/, check them, and run the wheel
	rm -rf dist build/wheel
	$(BIN)/python -m build --outdir dist
	$(BIN)/uv tool run twine check --strict dist/*
	$(BIN)/uv venv --quiet --python $(BIN)/python build/wheel
	VIRTUAL_ENV=build/wheel $(BIN)/uv pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && wheel/bin/lightning-peft --version && wheel/bin/lightning-peft plan method=lora

backbone: setup ## Pretrain the shipped backbone again
	$(BIN)/python -m tools.glyph_vit.pretrain

language-model: setup ## Pretrain the language model of the examples again
	$(BIN)/python -m tools.byte_lm.pretrain --steps 1500

clean: ## Remove what was made, the environment included
	rm -rf $(VENV) $(OLDEST) $(WILD) $(QUANTIZED) $(DOCS) $(EVIDENCE) build dist runs sweeps outputs multirun .pytest_cache .mypy_cache .ruff_cache
