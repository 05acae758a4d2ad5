"""What every test stands on: no network, two threads, the same random numbers each time."""

import gc
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator

# Before any Hugging Face library is imported: it reads these once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("MPLBACKEND", "Agg")
# Two cores: one thread a worker under pytest-xdist, both cores without it. In the environment, so that the programs a
# test starts keep to it too: threads that find no free core make each other wait, and all of it slow.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
from hypothesis import settings

from tests import commands

# Property tests: the same examples every run, and no deadline on a busy machine.
settings.register_profile("theworld", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("theworld")


def pytest_configure(config: pytest.Config) -> None:
    """Names the folder of the commands of this session (tests/commands.py), before workers are started."""
    gc.disable()  # during the imports, since it would look at a million objects again and again
    if not hasattr(config, "workerinput"):
        os.environ[commands.FOLDER] = tempfile.mkdtemp(prefix="commands-")
        os.environ[f"{commands.FOLDER}_OWNER"] = str(os.getpid())


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ[commands.FOLDER])


def pytest_collection_finish() -> None:
    """Excludes what has been imported from garbage collection: a full one took 0.6 s, and each training run has one."""
    import torch  # not above, since the process that only distributes the tests does not need it

    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)
    gc.collect()
    gc.freeze()
    gc.enable()


def pytest_sessionfinish() -> None:
    gc.unfreeze()  # libraries look for what was never freed


@pytest.fixture(scope="session", autouse=True)
def _dtype() -> Iterator[None]:
    """The dtype of a model does not depend on the CPU, also where it is made for all tests of a module."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("theworld.model.devices.cpu_has_bfloat16", lambda: False)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """A test's random numbers and log do not depend on the tests before it."""
    import torch

    torch.manual_seed(0)
    for module in ("pipeline", "world_runner"):  # a command in this process silences them
        logging.getLogger(f"theworld.inference.{module}").setLevel(logging.NOTSET)
