# What a person types often. `make demo` and `make test` make the environment first, if it is not there.
PYTHON ?= python3
VENV ?= .venv
DEMO := runs/demo
STUDY := runs/study
CONFIGS := hie_bundle/configs
RUN := $(VENV)/bin/python -m monai.bundle run
TRAIN_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/demo.yaml']"
EVALUATE_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/evaluate.yaml','$(CONFIGS)/demo.yaml']"
STUDY_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/study.yaml','$(CONFIGS)/demo.yaml']"
INFER_DEMO := "['$(CONFIGS)/inference.yaml','$(CONFIGS)/demo.yaml']"

.PHONY: help install demo study test test-slow lint bench clean

help:
	@echo "make demo        a phantom cohort, trained on, evaluated and segmented, under $(DEMO)"
	@echo "make study       the six losses compared on such a cohort, under $(STUDY); goes on where it was stopped"
	@echo "make test        the checks and tests, except the slow ones"
	@echo "make test-slow   the slow tests"
	@echo "make lint        ruff and mypy"
	@echo "make bench       every part against its stock counterpart; an hour or more, alone on the machine"
	@echo "make clean       remove $(DEMO) and the environment"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(RUN) phantom --config_file $(CONFIGS)/data.yaml --output_dir $(DEMO)/data --num_train 48 --num_val 8 --num_test 16 --seed 0
	$(RUN) training --config_file $(TRAIN_DEMO)
	$(RUN) evaluating --config_file $(EVALUATE_DEMO) --split test
	$(RUN) --config_file $(INFER_DEMO) --split test --output_dir $(DEMO)/masks
	@echo
	@cat $(DEMO)/eval/comparison.txt
	@echo
	@echo "cohort       $(DEMO)/data"
	@echo "weights      $(DEMO)/models/model.pt"
	@echo "curves       $(VENV)/bin/tensorboard --logdir $(DEMO)/eval/tensorboard"
	@echo "evaluation   $(DEMO)/eval/metrics.csv, metrics.json, overlays/"
	@echo "masks        $(DEMO)/masks"

# two trainings of one thread each do more on two cores than one of two threads
study: install
	$(RUN) phantom --config_file $(CONFIGS)/data.yaml --output_dir $(STUDY)/data --num_train 48 --num_val 8 --num_test 16 --seed 0
	$(RUN) loss_study --config_file $(STUDY_DEMO) --dataset_dir $(STUDY)/data --output_dir $(STUDY) --split test --parallel 2
	@echo
	@cat $(STUDY)/study.md

test: install lint
	$(VENV)/bin/python -m pytest -m "not slow"

test-slow: install
	$(VENV)/bin/python -m pytest -m slow

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

bench: install
	$(VENV)/bin/python tests/benchmarks

clean:
	rm -rf $(DEMO) $(VENV)
