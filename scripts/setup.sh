#!/usr/bin/env bash
# Sets TheWorld up on a machine that has python3 (3.11 or newer), git and make. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

VENV=${VENV:-.venv}
DEV=1
MODELS=1

usage() {
    cat <<'HELP'
Usage: bash scripts/setup.sh [--skip-dev] [--skip-models] [--help]

Creates .venv (or VENV=...), checkpoints/ and logs/, installs the versions of requirements.lock after checking their
hashes, installs TheWorld, tests the imports, and looks for a Hugging Face token. With a token it downloads the base
models into the cache; an interrupted download is resumed. If you run it again, it does only what is missing.

  --skip-dev     do not install the tools for tests, formatting and types
  --skip-models  download no models; the shipped model nano needs none
  --help         show this message

The token is read from HF_TOKEN or from `hf auth login`. PYTHON=... selects the Python to use.
HELP
}

for option in "$@"; do
    case $option in
        --skip-dev) DEV=0 ;;
        --skip-models) MODELS=0 ;;
        --help | -h) usage; exit 0 ;;
        *) echo "setup.sh: unknown option $option" >&2; usage >&2; exit 2 ;;
    esac
done

say() { printf '==> %s\n' "$*"; }
fail() { printf 'setup.sh: %s\n' "$*" >&2; exit 1; }

is_recent() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.12 python3.13 python3.11 python3.14 python; do
        # The candidate is run, because the shim of a version manager may exist without its Python.
        if is_recent "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

# Uses an installed uv, or installs one next to .venv; nothing outside this folder is changed.
find_uv() {
    local own="$VENV-uv" candidate
    for candidate in uv "$HOME/.local/bin/uv" "$own/bin/uv"; do
        if "$candidate" --version >/dev/null 2>&1; then echo "$candidate"; return; fi
    done
    say "uv is not installed; installing it into $own" >&2
    rm -rf "$own"
    # Without ensurepip, or where the system manages Python, uv is installed into a plain folder.
    if "$1" -m venv "$own" >/dev/null 2>&1 && "$own/bin/python" -m pip install --quiet --disable-pip-version-check uv >&2; then
        echo "$own/bin/uv"
    elif rm -rf "$own" && "$1" -m pip install --quiet --disable-pip-version-check --target "$own" uv >&2; then
        echo "$own/bin/uv"
    else
        rm -rf "$own"
        return 1
    fi
}

fingerprint() { # of everything that determines the environment: lock files, project file, this folder, the Python
    "$1" - "$PWD" "${@:2}" <<'PY'
import hashlib, pathlib, sys
digest = hashlib.sha256(f"{sys.version} {sys.argv[1]}".encode())
for name in sys.argv[2:]:
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PY
}

started=$SECONDS
mkdir -p checkpoints logs
python="$VENV/bin/python"
if [ ! -e "$VENV" ]; then
    base=$(find_python) || fail "no Python 3.11 or newer was found; install one, or set PYTHON=/path/to/python3."
    uv=$(find_uv "$base") || fail "uv could not be installed; install it (https://docs.astral.sh/uv) or the package python3-venv, and check the network."
    say "Creating $VENV with $("$base" --version)"
    "$uv" venv --quiet --seed --python "$base" "$VENV" # with pip, so that users can install further packages
fi
is_recent "$python" || fail "$VENV is not an environment with Python 3.11 or newer; remove it (rm -r $VENV) and run this script again."

files=(requirements.lock pyproject.toml)
stamp="$VENV/.setup-core"
if [ $DEV = 1 ]; then
    files+=(requirements-dev.lock)
    stamp="$VENV/.setup-dev"
fi
wanted=$(fingerprint "$python" "${files[@]}")

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
    say "$VENV is up to date"
    touch "$stamp" # make compares its time with those of the lock files
else
    uv=$(find_uv "$python") || fail "uv could not be installed; install it (https://docs.astral.sh/uv) and check the network."
    locks=(-r requirements.lock)
    [ $DEV = 0 ] || locks+=(-r requirements-dev.lock)
    say "Installing the locked packages (the first time, on Linux, about 5 GB: torch and its CUDA libraries)"
    quiet=--quiet
    [ ! -t 1 ] || quiet= # progress bars at a terminal
    # The lock files contain all packages, so nothing is resolved again (lmms-eval requires more: scripts/lock.toml).
    # The byte code is compiled now; with PYTHONDONTWRITEBYTECODE, every start would compile torch and transformers.
    # shellcheck disable=SC2086  # one word or none
    UV_COMPILE_BYTECODE=${UV_COMPILE_BYTECODE:-1} "$uv" pip install $quiet --python "$python" --no-deps --require-hashes "${locks[@]}" \
        || fail "the packages could not be installed (see above); check the network and the free disk space, and run this script again."
    "$uv" pip install --quiet --python "$python" --no-deps --editable . || fail "TheWorld itself could not be installed (see above)."
    say "Testing the imports"
    "$python" - <<'PY' || fail "the environment does not work (see above); remove it (rm -r $VENV) and run this script again."
import importlib, platform
names = ("torch", "torchvision", "transformers", "diffusers", "peft", "theworld")
versions = [f"{name} {importlib.import_module(name).__version__}" for name in names]
import torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"    Python {platform.python_version()}, {', '.join(versions)}, {device}")
PY
    echo "$wanted" >"$stamp"
    # The development environment contains the core environment.
    [ $DEV = 0 ] || fingerprint "$python" requirements.lock pyproject.toml >"$VENV/.setup-core"
fi

if "$python" -c 'import sys, huggingface_hub; sys.exit(huggingface_hub.get_token() is None)'; then
    say "Found a Hugging Face token"
    if [ $MODELS = 1 ]; then
        failed="the base models could not be downloaded (see above); everything else is ready."
        "$VENV/bin/hf" download google/gemma-3-4b-it \
            --include "*.safetensors" --include "*.json" --include "*.model" --include "*.jinja" || fail "$failed"
        # Without patterns the original checkpoints, a second copy of all weights, would be downloaded as well.
        "$VENV/bin/hf" download nvidia/Cosmos-Predict2-2B-Video2World --include "model_index.json" --include "vae/*" \
            --include "transformer/*" --include "scheduler/*" --include "text_encoder/*" --include "tokenizer/*" \
            || fail "$failed"
    fi
else
    say "No Hugging Face token was found. nano needs none; for Gemma 3 and Cosmos set HF_TOKEN or run $VENV/bin/hf auth login"
fi
say "Ready after $((SECONDS - started)) s. Next: make run, or source $VENV/bin/activate and theworld --help"
