# What a person types often. `make demo` and `make test` create the environment first if it does not exist.
PYTHON ?= python3
VENV ?= .venv
DEMO := runs/demo
STUDY := runs/study
CONFIGS := hie_bundle/configs
RUN := $(VENV)/bin/python -m monai.bundle run
TRAIN_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/demo.yaml']"
EVALUATE_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/evaluate.yaml','$(CONFIGS)/demo.yaml']"
STRONG := '$(CONFIGS)/strong.yaml','$(CONFIGS)/strong_cpu.yaml'
SIMULATED_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/evaluate.yaml',$(STRONG)]"
FINE_TUNE_DEMO := "['$(CONFIGS)/train.yaml',$(STRONG),'$(CONFIGS)/fine_tune.yaml']"
STUDY_DEMO := "['$(CONFIGS)/train.yaml','$(CONFIGS)/study.yaml','$(CONFIGS)/demo.yaml']"

# the bundle's version; empty in a tree without it
VERSION = $(shell sed -n 's/^  "version": "\(.*\)",/\1/p' hie_bundle/configs/metadata.json)
WEIGHTS = $(wildcard hie_bundle/models/model.pt)
PACKED = --prefix=hie_bundle/models/ --add-file=dist/models/model.pt --add-file=dist/models/model.json
# what has PyTorch: the environment, if it is there
WITH_TORCH = $(abspath $(firstword $(wildcard $(VENV)/bin/python) $(shell command -v $(PYTHON))))
LABEL_VENV := .venv-monailabel
SBOM_VENV := .venv-sbom
PANOPTICA_VENV := .venv-panoptica
READERS_VENV := .venv-readers
# in processes of their own: OpenVINO beside ITK and TorchIO has crashed one; ONNX breaks the capture of the CLI tests
WITH_OPENVINO := tests/inference/test_inferers.py tests/bundle/test_zoo.py
WITH_ONNX := tests/bundle/test_exports.py

.PHONY: help install demo study test test-all test-slow test-monailabel test-real test-tracking test-panoptica test-readers lint bench bench-peers docs changelog package wheel release \
	large_files clean

help:
	@echo "make install           create the environment $(VENV); the other targets do so if it does not exist"
	@echo "make demo              masks within a minute; then simulate, fine-tune, train and evaluate, in $(DEMO)"
	@echo "make study             compare the six losses on a simulated cohort, in $(STUDY); resumes"
	@echo "make test              lint, types and fast tests"
	@echo "make test-slow         slow tests"
	@echo "make test-all          both"
	@echo "make test-monailabel   tests with a real MONAI Label server; an environment of several GB"
	@echo "make test-tracking     tests with MLflow and Weights & Biases; installs both"
	@echo "make test-real         reading files of real scanners: DIR=FOLDER"
	@echo "make test-readers      DICOM segmentations read back by dcmqi, in a separate environment"
	@echo "make test-panoptica    the matching of lesions against panoptica's, in a separate environment"
	@echo "make lint              ruff, mypy and the words of pages, code and configs"
	@echo "make bench             each part against its stock counterpart; an hour or more on an idle machine"
	@echo "make bench-peers       nnU-Net on the same cases: NNUNET=PYTHON DATASET_DIR=DIR [MINUTES=30]"
	@echo "make docs              the documentation, in dist/docs; needs no network"
	@echo "make changelog         CHANGELOG.md from configs/metadata.json"
	@echo "make release           bundle, wheel and software bill of materials of the commit, in dist"
	@echo "make package           the committed bundle, with models/model.pt if it exists, as dist/hie_bundle_v<version>.zip"
	@echo "make package RECIPE=strong   a bundle whose own recipe and weights are the shipped ones, as folder and zip"
	@echo "make wheel             dist/hie_bundle-<version>-py3-none-any.whl, with the command hie-bundle"
	@echo "make large_files URL=...     for the Model Zoo: large_files.yml with the address and hash of dist/models/model.pt"
	@echo "make clean             remove $(DEMO), dist and the environments"

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(RUN) phantom --config_file $(CONFIGS)/data.yaml --output_dir $(DEMO)/first/data --num_train 0 --num_val 0 --num_test 3 --num_healthy 4 --seed 1
	$(VENV)/bin/hie-bundle segment $(DEMO)/first/data -o $(DEMO)/first/masks --overlay $(DEMO)/first/overlays
	@echo "First pictures: $(DEMO)/first/overlays. Next: a cohort to train on and to measure."
	$(RUN) phantom --config_file $(CONFIGS)/data.yaml --output_dir $(DEMO)/data --num_train 48 --num_val 8 --num_test 16 --seed 0
	$(RUN) evaluating --config_file $(SIMULATED_DEMO) --split test --dataset_dir $(DEMO)/data \
		--output_dir $(DEMO)/simulated --ckpt_path hie_bundle/models/simulated/model.pt
	$(RUN) training --config_file $(FINE_TUNE_DEMO) --dataset_dir $(DEMO)/data \
		--output_dir $(DEMO)/fine_tuned --ckpt_dir $(DEMO)/fine_tuned --overwrite True
	$(RUN) evaluating --config_file $(SIMULATED_DEMO) --split test --dataset_dir $(DEMO)/data \
		--output_dir $(DEMO)/fine_tuned --ckpt_path $(DEMO)/fine_tuned/model.pt
	$(RUN) boosting --config_file $(EVALUATE_DEMO) --split test --output_dir $(DEMO)/boosting
	$(RUN) training --config_file $(TRAIN_DEMO) --epochs 16 --overwrite True
	$(RUN) evaluating --config_file $(EVALUATE_DEMO) --split test
	@echo
	@echo "This cohort is from the simulator that the shipped weights were trained on; for other hands see hie_bundle/docs/README.md."
	@echo
	@echo "The shipped weights, not trained on these cases:"
	@cat $(DEMO)/simulated/comparison.txt
	@echo
	@echo "The shipped weights, fine-tuned for 160 steps on the 48 training cases:"
	@cat $(DEMO)/fine_tuned/comparison.txt
	@echo
	@echo "Gradient boosting on 33 voxelwise features, fitted on the same 48 cases:"
	@cat $(DEMO)/boosting/comparison.txt
	@echo
	@echo "The paper's recipe, small, trained on the same 48 cases:"
	@cat $(DEMO)/eval/comparison.txt
	@echo
	@echo "cohort       $(DEMO)/data"
	@echo "first masks  $(DEMO)/first/masks, overlays/; measured in $(DEMO)/simulated/report.html"
	@echo "fine-tuned   $(DEMO)/fine_tuned/model.pt, report.html, overlays/"
	@echo "weights      $(DEMO)/models/model.pt"
	@echo "curves       $(VENV)/bin/tensorboard --logdir $(DEMO)/eval/tensorboard"
	@echo "evaluation   $(DEMO)/eval/report.html, metrics.csv, metrics.json, masks/, overlays/"

# two trainings of one thread each do more on two cores than one of two threads
study: install
	$(RUN) phantom --config_file $(CONFIGS)/data.yaml --output_dir $(STUDY)/data --num_train 48 --num_val 8 --num_test 16 --seed 0
	$(RUN) loss_study --config_file $(STUDY_DEMO) --dataset_dir $(STUDY)/data --output_dir $(STUDY) --split test --parallel 2
	@echo
	@cat $(STUDY)/study.md

test: install lint
	$(VENV)/bin/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(WITH_OPENVINO:%=--ignore=%) $(WITH_ONNX:%=--ignore=%)
	$(VENV)/bin/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile $(WITH_OPENVINO)
	$(VENV)/bin/python -m pytest -m "not slow" $(WITH_ONNX)

# everything but MONAI Label's server
test-all: test test-slow

test-slow: install
	$(VENV)/bin/python -m pytest -m slow

test-monailabel: $(LABEL_VENV)/.installed
	$(LABEL_VENV)/bin/python -m pytest tests/monailabel

# files of real scanners, which are not in the repository; `make test` runs them, too, where ../shared is there
test-real: install
	HIE_REAL=$(DIR) $(VENV)/bin/python -m pytest tests/scanner/test_scanner_real.py

test-readers: install
	$(PYTHON) -m venv $(READERS_VENV)
	$(READERS_VENV)/bin/python -m pip install --quiet dcmqi==1.5.7
	DCMQI=$(abspath $(READERS_VENV)/bin/segimage2itkimage) $(VENV)/bin/python -m pytest tests/scanner/test_scanner_readers.py

test-tracking: install
	$(VENV)/bin/python -m pip install --quiet -c constraints.txt --editable '.[tracking]'
	$(VENV)/bin/python -m pytest tests/training/test_tracking.py

test-panoptica: install
	$(PYTHON) -m venv $(PANOPTICA_VENV)
	$(PANOPTICA_VENV)/bin/python -m pip install --quiet panoptica==2.1.7
	PANOPTICA_PYTHON=$(abspath $(PANOPTICA_VENV)/bin/python) $(VENV)/bin/python -m pytest tests/evaluation/test_lesions.py

$(LABEL_VENV)/.installed: tests/monailabel/requirements.txt
	$(PYTHON) -m venv $(LABEL_VENV)
	$(LABEL_VENV)/bin/python -m pip install --quiet -r tests/monailabel/requirements.txt
	touch $@

lint: install
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/python docs/prose.py

bench: install
	$(VENV)/bin/python tests/benchmarks

# make bench-peers NNUNET=…/bin/python DATASET_DIR=… [MINUTES=30]; another tool has an environment of its own
bench-peers: install
	$(VENV)/bin/python tests/benchmarks/peers.py --nnunet $(NNUNET) --dataset_dir $(DATASET_DIR) --minutes $(or $(MINUTES),30)

docs: install
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --quiet
	@echo "dist/docs/index.html"

changelog:
	$(WITH_TORCH) docs/reference.py changelog

# what is committed, and what it needs, by the versions of constraints.txt
release: install $(SBOM_VENV)/bin/cyclonedx-py
	@git diff --quiet HEAD || { echo "there are changes that are not committed"; exit 2; }
	$(VENV)/bin/python -m pytest tests/bundle/test_docs.py -k "changelog or version"
	$(MAKE) package wheel
	$(SBOM_VENV)/bin/cyclonedx-py requirements constraints.txt --pyproject pyproject.toml --of JSON --output-reproducible \
		-o dist/hie_bundle_v$(VERSION).cdx.json
	@ls -l dist

$(SBOM_VENV)/bin/cyclonedx-py:
	$(PYTHON) -m venv $(SBOM_VENV)
	$(SBOM_VENV)/bin/python -m pip install --quiet cyclonedx-bom==7.5.0

# the weights as the Model Zoo's tools take them, and what they were trained with beside them
dist/models/model.pt: hie_bundle/models/model.pt
	cd hie_bundle && $(WITH_TORCH) -c "from scripts.io.weights import write_bare; write_bare('models/model.pt', '../$@')"

ifdef RECIPE
# a bundle of its own, whose configs and weights are those of the shipped weights
package: STEM = hie_bundle_$(RECIPE)
package:
	rm -rf dist/$(STEM) && mkdir -p dist
	git archive --prefix=$(STEM)/ HEAD:hie_bundle | tar -x -C dist
	cd hie_bundle && $(WITH_TORCH) -c "from scripts.cli.packaging import write_recipe; write_recipe('../dist/$(STEM)')"
	cd dist && $(WITH_TORCH) -m zipfile -c $(STEM)_v$(VERSION).zip $(STEM)
	@echo "dist/$(STEM), dist/$(STEM)_v$(VERSION).zip"
else
package: $(if $(WEIGHTS),dist/models/model.pt)
	mkdir -p dist
	git archive --format=zip --output=dist/hie_bundle_v$(VERSION).zip $(if $(WEIGHTS),$(PACKED)) --prefix= HEAD hie_bundle
	@echo "dist/hie_bundle_v$(VERSION).zip$(if $(WEIGHTS),, (without weights: there is no hie_bundle/models/model.pt))"
endif

# from what git knows, so that nothing that a run has left gets in
wheel:
	rm -rf dist/source && mkdir -p dist/source
	git archive HEAD | tar -x -C dist/source
	$(WITH_TORCH) -m pip wheel --quiet --no-deps --wheel-dir dist dist/source
	rm -rf dist/source
	@ls dist/*.whl

large_files: $(if $(WEIGHTS),dist/models/model.pt)
	@test -n "$(URL)" || { echo "say where dist/models/model.pt will be: make large_files URL=https://..."; exit 2; }
	@test -n "$(WEIGHTS)" || { echo "there is no hie_bundle/models/model.pt"; exit 2; }
	@cp dist/models/model.json hie_bundle/models/model.json
	@printf 'large_files:\n- path: models/model.pt\n  url: "%s"\n  hash_val: %s\n  hash_type: sha256\n' \
		"$(URL)" "$$(sha256sum dist/models/model.pt | cut -d' ' -f1)" > hie_bundle/large_files.yml
	@cat hie_bundle/large_files.yml

clean:
	rm -rf $(DEMO) $(VENV) $(LABEL_VENV) $(SBOM_VENV) $(PANOPTICA_VENV) $(READERS_VENV) dist
