# A newcomer needs Python 3.11 or later, git and make: `make demo`, `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := runs/demo
# Versions with which everything was green, as a newcomer and CI install them. `make test CONSTRAINTS=`: the newest.
CONSTRAINTS ?= constraints.txt
# Processes that share the tests, file by file: what the tests of a file have in common is made once. One more than cores,
# of the usual two, since some tests wait for other programs. 0 for one alone.
WORKERS ?= 3
PARALLEL = -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# Bytecode is kept, also where the environment says otherwise: the tests start hundreds of processes.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest

.PHONY: demo test test-fast docs test-arm default-model results tables results-engines results-serve results-archive results-web picture
.PHONY: constraints
.PHONY: format clean
.DELETE_ON_ERROR:

# The stamp is made last: an interrupted installation is done again.
$(VENV)/installed: pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pneumo needs Python 3.11 or later: call make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) --editable '.[all,dev]'
	touch $@

# Phantoms -> train -> export with the gate -> a verdict with its heatmap -> benchmarks.
demo: $(VENV)/installed
	@echo 'Everything here is done on phantoms: synthetic drawings, no patients, never a substitute for real films.'
	rm -rf $(DEMO)
	$(BIN)/pneumo-train --data phantom --output $(DEMO) --size 96 --epochs 8 --test
	@# A file that the gate refuses is an answer too; the demo goes on with those that passed.
	$(BIN)/pneumo-export $(DEMO) --int8 || test -f $(DEMO)/bundle/model.json
	$(BIN)/pneumo-infer runs/phantoms/*/test/NORMAL runs/phantoms/*/test/PNEUMONIA \
	    --model $(DEMO)/bundle --heatmap $(DEMO)/heatmaps > $(DEMO)/verdicts.txt
	$(BIN)/pneumo-bench accuracy --model $(DEMO)/bundle --data runs/phantoms --output $(DEMO)/bench
	$(BIN)/pneumo-bench latency --model $(DEMO)/bundle --rounds 2 --queries 200 --output $(DEMO)/bench
	@echo
	@echo 'Report:    $(DEMO)/report.html'
	@echo 'Heatmaps:  $(DEMO)/heatmaps/'
	@echo 'Benchmark: $(DEMO)/bench/'
	@echo 'Verdicts:  $(DEMO)/verdicts.txt, such as'
	@head -3 $(DEMO)/verdicts.txt; tail -3 $(DEMO)/verdicts.txt

# All that is checked of the code.
test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(PYTEST) $(PARALLEL)

# The runtime alone: what to call between two edits.
test-fast: $(VENV)/installed
	$(PYTEST) $(PARALLEL) tests/edge

# The pages in docs/ as a site, into site/.
docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Does 64-bit Arm give the same answers? Emulated, as root. RUN=runs/NAME: on validation films of that run, which lie in
# DATA if they have moved; on phantoms otherwise. BUNDLE=...: another model than the one that comes with pneumo.
test-arm: $(VENV)/installed
	$(BIN)/python tests/arm.py $(if $(RUN),--run $(RUN)) $(if $(DATA),--data $(DATA)) $(if $(BUNDLE),--model $(BUNDLE))

# The model that comes with pneumo: the int8 files of BUNDLE.
default-model: $(VENV)/installed
	$(BIN)/python -m pneumo_export.default_model $(BUNDLE)

# docs/results/, on a quiet machine: RUNS="runs/a runs/b", exported, the first to be the default model; DATA=the films;
# ALSO="runs/c": finished runs whose own figures are published, and which are not timed.
# BASELINE and BASELINE_BARE: what latency and the way from disk to verdict are divided by, such as
# onnxruntime:resnet50-gap-224/model.onnx and bare:resnet50-gap-224/model.onnx. TRAINING_FILMS: 0 for all.
TRAINING_FILMS := 1280
RESULTS := docs/results
BENCH = $(BIN)/pneumo-bench
FIRST = $(firstword $(RUNS))
MODELS = $(foreach run,$(RUNS),--model $(run)/bundle)
results: $(VENV)/installed
	$(if $(filter /%,$(RUNS) $(ALSO) $(DATA)),$(error RUNS and DATA go into what is published: give relative paths))
	@test -n '$(RUNS)' && test -n '$(DATA)' || { echo 'call make results RUNS="runs/a runs/b" DATA=chest_xray'; exit 2; }
	$(BIN)/python -m pneumo_bench.results $(RESULTS) $(RUNS) $(ALSO)
	@# What is timed comes first: from accuracy on, the machine may do something else as well.
	$(BENCH) latency $(MODELS) --run $(FIRST) --queries 100 --rounds 3 \
	    $(if $(BASELINE),--baseline $(BASELINE)) --output $(RESULTS)/bench
	$(BENCH) layers --model $(FIRST)/bundle --output $(RESULTS)/bench
	$(BENCH) end-to-end $(MODELS) --rounds 10 $(if $(BASELINE_BARE),--baseline $(BASELINE_BARE)) --output $(RESULTS)/bench
	$(BENCH) training --data $(DATA) --films $(TRAINING_FILMS) --output $(RESULTS)/bench
	$(BENCH) accuracy $(MODELS) --data $(DATA) --latency $(RESULTS)/bench/latency.json --output $(RESULTS)/bench
	@# Each film 29 times, and in six engines: hours for the heavy models.
	$(BENCH) accuracy --model $(FIRST)/bundle --split validation --run $(FIRST) --data $(DATA) \
	    --latency $(RESULTS)/bench/latency.json --output $(RESULTS)/bench
	$(BENCH) agreement --model $(FIRST)/bundle --run $(FIRST) --data $(DATA) --output $(RESULTS)/bench
	$(BIN)/python -m pneumo_bench.results $(RESULTS) $(RUNS) $(ALSO)
	$(MAKE) tables

# The tables in README.md and docs/, from docs/results/.
tables: $(VENV)/installed
	$(BIN)/python -m pneumo_bench.readme README.md docs/*.md

# docs/results/engines, on a quiet x86-64 machine: the model that comes with pneumo in every engine, on this processor
# and as if it were an older one. Needs a C compiler.
results-engines: $(VENV)/installed
	mkdir -p runs
	cc -O1 -shared -fPIC -o runs/as_older_processor.so benchmarks/as_older_processor.c
	for as in avx2 avx_vnni ''; do \
	    if [ -n "$$as" ]; then export PNEUMO_BENCH_AS=$$as LD_PRELOAD=$(CURDIR)/runs/as_older_processor.so; \
	    else unset PNEUMO_BENCH_AS LD_PRELOAD; fi; \
	    $(BENCH) latency --rounds 3 --output $(RESULTS)/engines/$${as:-native} && \
	    $(BENCH) end-to-end --rounds 5 --output $(RESULTS)/engines/$${as:-native} || exit; \
	done

# docs/results/serve and archive, on a quiet machine; the first needs Orthanc.
results-serve: $(VENV)/installed
	$(BENCH) http --output $(RESULTS)/serve
	$(BENCH) serve --output $(RESULTS)/serve

results-archive: $(VENV)/installed
	$(BENCH) archive --output $(RESULTS)/archive

# The times in docs/results/web, on a quiet machine with Chromium, in some minutes. FILMS=folder of films; phantoms
# otherwise. Its agreement.json comes from pneumo-bench web-agreement.
results-web: $(VENV)/installed
	$(BENCH) web $(if $(FILMS),--films $(FILMS)) --output $(RESULTS)/web

# The pictures of the README: a phantom, judged by the model that comes with pneumo. The second one needs Chromium.
picture: $(VENV)/installed
	$(BIN)/python -m pneumo_bench.picture docs/film.png
	$(BIN)/python tests/serve_picture.py docs/serve.png

# The newest versions that there are, into constraints.txt. `make test` judges them; what is red is not committed.
constraints:
	rm -rf $(VENV)
	$(MAKE) $(VENV)/installed CONSTRAINTS=
	{ echo '# Made by make constraints, on Linux with Python 3.11.'; $(BIN)/python -m pip freeze --exclude-editable; } \
	    > constraints.txt

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) dist site .arm
