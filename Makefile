# make demo   compares labeled-only, DMT and Dual Teacher on a generated dataset (5 minutes)
# make test   runs the whole test suite
# make lint   checks style and format
# make docs   builds the site of guides and API into work_dirs/site
# make docs-test   runs the commands of README and guides on small data (ARGS='--only docs/dmt.md')
#
# Each installs what it needs into .venv first, once (about 6 GB); after that all of them work
# offline. Options: PYTHON=python3.11, VENV=path, JOBS=4, ARGS='--seed 1'.

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2
ARGS ?=

# The stamp is written when the installation is complete. Its name follows the requirements, so
# that an interrupted installation and changed requirements lead to a new one, new dates do not.
WANTED := $(shell cat setup.py requirements/*.txt | cksum | tr -d ' ')
STAMP ?= $(VENV)/.mmdmt-installed-$(WANTED)
RUN := $(VENV)/bin/python

# OpenMP threads that spin while they wait make two busy processes five times slower.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: help install demo test lint docs docs-test format clean

help:
	@sed -n '1,8s/^# \{0,1\}//p' Makefile

install: $(STAMP)

$(STAMP):
	@echo "== Virtual environment in $(VENV)"
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  echo "$(PYTHON) -m venv failed: it needs Python 3.9 or newer with venv" \
	       "(on Debian and Ubuntu: apt install python3-venv)."; exit 1; }
	@echo "== Installing PyTorch, MMSegmentation and this package (several minutes the first time)"
	$(RUN) -m pip install --upgrade 'pip>=23'
	$(RUN) -m pip install --editable '.[tests]'
	@echo "== Checking the installation"
	@$(RUN) -W ignore -c 'import mmdmt; print("mmdmt", mmdmt.__version__, "is ready")' || { \
	  echo "The installation in $(VENV) is damaged: remove that folder and run make again."; exit 1; }
	@rm -f $(VENV)/.mmdmt-installed-*
	@touch $@

demo: $(STAMP)
	$(RUN) -W ignore tools/demo.py $(ARGS)

test: export OMP_NUM_THREADS = 1
test: $(STAMP)
	@# A file at a time, since its tests share what they trained; slow files first (tests/conftest.py).
	$(RUN) -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

docs: $(STAMP)
	$(RUN) -m mkdocs build --clean

docs-test: $(STAMP)
	$(RUN) -W ignore tests/docs_commands.py $(ARGS)

format: $(STAMP)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

clean:
	rm -rf build dist *.egg-info mmdmt/.mim .pytest_cache .ruff_cache .hypothesis work_dirs/demo
	find mmdmt tools tests configs -name __pycache__ -prune -exec rm -rf {} +
