# `make demo` and `make test` need nothing else to have been done before: .ci/setup installs what is missing
# and says so. Each recipe is one shell script, which ends at the first command that fails.
SHELL := /bin/sh
.SHELLFLAGS := -euc
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help demo test check install-units fuzz bench paths man image container-test machine-test engine-test clean
.NOTPARALLEL:

# Namespaces need root. The variables are all that the commands take from the environment.
AS_ROOT := $(if $(filter 0,$(shell id -u)),,sudo env CI="$(CI)" PATH="$(PATH)")

# So long may a tier take, whatever hangs in it. INT, so that its tests clean up after themselves.
LIMIT = timeout --foreground --signal=INT --kill-after=60

define CHECK
say() { printf '\n== %s\n' "$$*"; }
say "ruff: lint"
"$$python" -m ruff check .
say "ruff: format"
"$$python" -m ruff format --check .
say "mypy --strict"
"$$python" -m mypy
say "import-linter: layers and pure modules"
"$$python" "$$venv/bin/lint-imports"
say "pytest: unit tests"
$(LIMIT) 300 "$$python" -m pytest -n auto --dist worksteal tests/unit
endef

help:
	@cat <<-'END'
	make demo    see it work: two nodes, a relay, a killed relay, a killed agent (needs root or sudo)
	make test    everything that is tested: check, then interop, namespace, kube and kernel tiers
	make check   lint, types, layers and unit tests: the inner loop, a minute or two
	make install-units   write systemd's units for this tree's relayd (DESTDIR=, ARGS="--dry-run", "--uninstall")
	make paths   ten thousand runs of the path decisions in a simulated network (ARGS="--runs 100" for fewer)
	make fuzz    look for inputs that break a parser (SECONDS=60 is for all of them together)
	make bench   measure relay and agent (ARGS="--help" says what can be chosen)
	make man     the manual page, build/relayd.1
	make image   the container image relayd:VERSION, by docker (or ENGINE=podman)
	make container-test   run the Dockerfile's stages in a chroot: a container engine isn't needed (root, network)
	make engine-test   build the image by podman, then a relay and two agents as containers (root, network)
	make machine-test   the units in a virtual machine: systemd as process 1, WireGuard in the kernel (not in make test)
	make clean   remove what tools left in the tree (the virtual environment is in ~/.cache/relayd)
	END

demo:
	@venv=$$(sh .ci/setup demo)
	exec $(AS_ROOT) "$$venv/bin/python" -m relayd demo $(ARGS)

check:
	@venv=$$(sh .ci/setup check)
	python=$$venv/bin/python
	$(CHECK)

test:
	@venv=$$(sh .ci/setup test)
	python=$$venv/bin/python
	$(CHECK)
	say "pytest: the path decisions in a simulated network"
	$(LIMIT) 300 "$$python" -m pytest -n auto --dist worksteal tests/simulation
	say "pytest: other programs on what relayd writes, recorded exchanges, real processes in namespaces"
	$(LIMIT) 780 $(AS_ROOT) "$$python" -m pytest -p no:cacheprovider -n 2 --dist worksteal \
		tests/tools tests/interop tests/netns
	say "pytest: attacks on a relay"
	$(LIMIT) 300 $(AS_ROOT) "$$python" -m pytest -p no:cacheprovider tests/security tests/fuzz
	say "pytest: the status page in a browser"
	$(LIMIT) 180 $(AS_ROOT) "$$python" -m pytest -p no:cacheprovider tests/browser
	say "pytest: a Kubernetes API server (the first time it is built, from Go modules)"
	cluster=$$($(LIMIT) 1200 "$$python" -m tests.kube.build --cache "$${venv%/*}/kube")
	$(LIMIT) 600 $(AS_ROOT) env TEST_CLUSTER="$$cluster" \
		"$$python" -m pytest -p no:cacheprovider -n 3 --dist loadfile tests/kube
	say "pytest: a kernel with WireGuard, in a virtual machine"
	$(LIMIT) 1200 $(AS_ROOT) "$$python" -m tests.kernel.vm --cache "$${venv%/*}/kernelvm" -- \
		"$$python" -m pytest -p no:cacheprovider tests/kernel
	say "pytest: systemd as process 1, of namespaces of its own"
	$(AS_ROOT) sh tests/systemd/boot.sh 400 "$$python" -m pytest -p no:cacheprovider tests/systemd
	say "all tiers passed"

install-units:
	@venv=$$(sh .ci/setup demo)
	exec $(AS_ROOT) "$$venv/bin/relayd" install-service $(if $(DESTDIR),--root "$(DESTDIR)") $(ARGS)

fuzz:
	@venv=$$(sh .ci/setup check)
	python=$$venv/bin/python
	"$$python" -c 'import atheris' 2>/dev/null || "$$python" -m pip install --quiet 'atheris>=2.3' >&2
	exec "$$python" -m tests.fuzz $(or $(SECONDS),60) $(ARGS)

bench:
	@venv=$$(sh .ci/setup bench)
	exec "$$venv/bin/python" -m bench $(ARGS)

man:
	@venv=$$(sh .ci/setup check)
	mkdir -p build
	"$$venv/bin/python" -m relayd man >build/relayd.1

paths:
	@venv=$$(sh .ci/setup check)
	exec "$$venv/bin/python" -m tests.path_runs $(ARGS)

image:
	@version=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' relayd/__init__.py)
	exec $${ENGINE:-docker} build --tag "relayd:$$version" --build-arg "VERSION=$$version" \
		--build-arg "REVISION=$$(git rev-parse HEAD 2>/dev/null || true)" $(ARGS) .

container-test:
	@venv=$$(sh .ci/setup container)
	exec $(AS_ROOT) "$$venv/bin/python" -m tests.container --cache "$${venv%/*}/container"

engine-test:
	@venv=$$(sh .ci/setup engine)
	exec $(AS_ROOT) "$$venv/bin/python" -m tests.container.engine --cache "$${venv%/*}/container"

machine-test:
	@venv=$$(sh .ci/setup test)
	python=$$venv/bin/python
	$(LIMIT) 480 $(AS_ROOT) "$$python" -m tests.kernel.vm --cache "$${venv%/*}/kernelvm" --timeout 420 \
		--steady --systemd -- "$$python" -m pytest -p no:cacheprovider -s -m machine tests/systemd

clean:
	@find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist bench/results
