#!/usr/bin/env bash
# Writes requirements.lock (what the package needs) and requirements-dev.lock (the tools of the `dev` group beside it) from
# pyproject.toml: names, versions and hashes for every platform, and no address of the index they came from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
compile() {
    uv --config-file scripts/lock.toml pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url "$@"
}
compile pyproject.toml --output-file requirements.lock
compile --group dev --constraint requirements.lock --output-file requirements-dev.lock
echo "bitsandbytes>=0.50" | compile - --no-deps --output-file requirements-quantization.lock # for the tests of the extra `quantization`
