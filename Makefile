# Two commands do everything on a fresh machine: `make demo` and `make test`.
.PHONY: demo test docs install clean

demo: .venv/.installed
	.venv/bin/gfm-jepa demo

test: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	# Two processes of one thread each: two that both take both cores are ten times slower.
	OMP_NUM_THREADS=1 .venv/bin/pytest -n 2 --cov --cov-report=term

docs: .venv/.installed
	.venv/bin/pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --site-dir site

install: .venv/.installed

# The stamp is made last, so that an install that was broken off starts again.
.venv/.installed: pyproject.toml Makefile
	@found=; for python in $(PYTHON) python3.12 python3.13 python3.14 python3 python; do \
	    if $$python -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then \
	        found=$$python; break; fi; done; \
	if [ -z "$$found" ]; then \
	    echo "No Python 3.12 or newer found; install one, or name it: make PYTHON=/path/to/python3.12" >&2; \
	    exit 1; fi; \
	test -x .venv/bin/python || $$found -m venv .venv
	.venv/bin/pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf .venv build dist site *.egg-info
