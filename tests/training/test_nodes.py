"""The SLURM script, with two agents of torchrun on this machine instead of two nodes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.training.conftest import wait_for
from tests.training.processes import free_port
from theworld.training.checkpointing import checkpoints_in
from theworld.training.config import TrainingConfig

REPOSITORY = Path(__file__).parents[2]
STEPS = 60
SRUN = """#!/bin/bash
# starts the command on two "nodes", and ends both where one fails, as --kill-on-bad-exit does
shift
"$@" & echo $! > "$NODES/0"
"$@" & echo $! > "$NODES/1"
wait -n || { code=$?; sleep 5; kill $(jobs -p) 2> /dev/null; wait; exit $code; }
wait -n
"""


@pytest.mark.slow
def test_a_lost_node_ends_the_run_with_a_checkpoint_from_which_the_script_resumes(
    settings: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    values = settings(dataset_name="physics", dataset_options={"scenes_per_family": 2}, max_steps=STEPS, save_steps=2)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(values.to_dict()))
    for name, content in (("srun", SRUN), ("scontrol", "#!/bin/sh\necho localhost\necho localhost\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
        "NODES": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_NNODES": "2",
        "SLURM_GPUS_ON_NODE": "1",
    }
    command = ["bash", "examples/train.sbatch", str(config)]

    def started(log: Path) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            variables = {**environment, "PORT": str(free_port())}
            return subprocess.Popen(command, cwd=REPOSITORY, env=variables, stdout=output, stderr=output)

    first = started(tmp_path / "first.log")
    wait_for(lambda: bool(checkpoints_in(values.output_dir)) or first.poll() is not None)
    agent = psutil.Process(int((tmp_path / "1").read_text()))
    for process in [agent, *agent.children(recursive=True)]:
        process.send_signal(signal.SIGKILL)
    assert first.wait(timeout=120) != 0
    log = (tmp_path / "first.log").read_text()
    last = checkpoints_in(values.output_dir)[-1]
    assert "lost the connection to another process of this run, which ended or is unreachable; the last" in log, log
    assert int(last.name.removeprefix("checkpoint-")) < STEPS
    assert started(tmp_path / "second.log").wait(timeout=280) == 0, (tmp_path / "second.log").read_text()
    assert f"resuming from {last}" in (tmp_path / "second.log").read_text()
    assert checkpoints_in(values.output_dir)[-1].name == f"checkpoint-{STEPS}"
