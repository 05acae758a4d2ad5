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

Makes .venv (another place: VENV=...), checkpoints/ and logs/, installs the versions of requirements.lock with their
hashes checked, then TheWorld itself, tries the imports, and looks for a Hugging Face token. With a token it caches the
base models; a download that was cut off goes on where it stopped. Running it again does only what is missing.

  --skip-dev     leave out the tools for tests, formatting and types (faster)
  --skip-models  download no model: the shipped nano model needs none
  --help         show this

The token is read from HF_TOKEN or from `hf auth login`. PYTHON=... names the Python to build on.
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
        # Asked to run, not only looked for: a version manager's shim may stand for a Python that is not there.
        if is_recent "$candidate"; then echo "$candidate"; return; fi
    done
    return 1
}

# uv from the PATH, or one of our own beside .venv: nothing outside this folder is changed.
find_uv() {
    local own="$VENV-uv" candidate
    for candidate in uv "$HOME/.local/bin/uv" "$own/bin/uv"; do
        if "$candidate" --version >/dev/null 2>&1; then echo "$candidate"; return; fi
    done
    say "uv is not installed: fetching it into $own" >&2
    rm -rf "$own"
    # A virtual environment first; where Python came without ensurepip or is managed by the system, a plain folder.
    if "$1" -m venv "$own" >/dev/null 2>&1 && "$own/bin/python" -m pip install --quiet --disable-pip-version-check uv >&2; then
        echo "$own/bin/uv"
    elif rm -rf "$own" && "$1" -m pip install --quiet --disable-pip-version-check --target "$own" uv >&2; then
        echo "$own/bin/uv"
    else
        rm -rf "$own"
        return 1
    fi
}

fingerprint() { # of what the environment is made from: locks, project file, this folder, the Python
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
    base=$(find_python) || fail "no Python 3.11 or newer was found: install one, or name it with PYTHON=/path/to/python3."
    uv=$(find_uv "$base") || fail "uv could not be installed: install it (https://docs.astral.sh/uv) or the package python3-venv, and check the network."
    say "Making $VENV with $("$base" --version)"
    "$uv" venv --quiet --seed --python "$base" "$VENV" # with pip, for what people add themselves
fi
is_recent "$python" || fail "$VENV is not an environment with Python 3.11 or newer: remove it (rm -r $VENV) and run this again."

files=(requirements.lock pyproject.toml)
stamp="$VENV/.setup-core"
if [ $DEV = 1 ]; then
    files+=(requirements-dev.lock)
    stamp="$VENV/.setup-dev"
fi
wanted=$(fingerprint "$python" "${files[@]}")

if [ "$(cat "$stamp" 2>/dev/null || true)" = "$wanted" ]; then
    say "$VENV is up to date"
    touch "$stamp" # newer than the files it was made from, which is what make looks at
else
    uv=$(find_uv "$python") || fail "uv could not be installed: install it (https://docs.astral.sh/uv) and check the network."
    locks=(-r requirements.lock)
    [ $DEV = 0 ] || locks+=(-r requirements-dev.lock)
    say "Installing the locked packages (the first time, on Linux, about 5 GB: torch and its CUDA libraries)"
    quiet=--quiet
    [ ! -t 1 ] || quiet= # progress bars for a person at a terminal
    # The locks name everything, so nothing is resolved again (lmms-eval would ask for more: scripts/lock.toml).
    # Compiled once now, since where PYTHONDONTWRITEBYTECODE is set every start would compile torch and transformers anew.
    # shellcheck disable=SC2086  # one word or none
    UV_COMPILE_BYTECODE=1 "$uv" pip install $quiet --python "$python" --no-deps --require-hashes "${locks[@]}" \
        || fail "the packages could not be installed (see above): check the network and the free disk, and run this again."
    "$uv" pip install --quiet --python "$python" --no-deps --editable . || fail "TheWorld itself could not be installed (see above)."
    say "Trying the imports"
    "$python" - <<'PY' || fail "the environment does not work (see above): remove it (rm -r $VENV) and run this again."
import importlib, platform
names = ("torch", "torchvision", "transformers", "diffusers", "peft", "theworld")
versions = [f"{name} {importlib.import_module(name).__version__}" for name in names]
import torch
device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
print(f"    Python {platform.python_version()}, {', '.join(versions)}, {device}")
PY
    echo "$wanted" >"$stamp"
    # The whole contains the smaller one.
    [ $DEV = 0 ] || fingerprint "$python" requirements.lock pyproject.toml >"$VENV/.setup-core"
fi

if "$python" -c 'import sys, huggingface_hub; sys.exit(huggingface_hub.get_token() is None)'; then
    say "A Hugging Face token is there"
    if [ $MODELS = 1 ]; then
        "$python" scripts/cache_models.py || fail "the base models are not cached (see above); everything else is ready."
    fi
else
    say "No Hugging Face token: nano works without one; for Gemma 3 and Cosmos set HF_TOKEN or run $VENV/bin/hf auth login"
fi
say "Ready after $((SECONDS - started)) s. Next: make run; the commands are in $VENV/bin (source $VENV/bin/activate, then theworld --help)"
