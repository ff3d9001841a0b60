"""A script whose ranks are started from outside: by ``torchrun`` on one node and on two, and as ``srun`` starts them.

The nodes are agents of torchrun on this machine. SLURM is its environment alone: there is no scheduler.
"""

import json
import os
import socket
from functools import partial
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from processes import exit_codes
from torch.distributed import run

from hqp_lightning.report import read_json

SCRIPT = str(Path(__file__).parent / "launched_script.py")
# What another launcher left, the suite's own included, is none of these runs'.
FOREIGN = ("TORCHELASTIC", "SLURM", "MASTER_", "WORLD_SIZE", "RANK", "LOCAL_", "NODE_RANK", "GROUP_", "ROLE_", "PL_")


def launched(folder, nodes, per_node, launcher, given):
    """A process of a launch, or the agent that starts a node's ranks; what it says goes into a file."""
    for key in [k for k in os.environ if k.startswith(FOREIGN) and k not in given]:
        del os.environ[key]
    os.chdir(folder)
    told = os.open("told.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(told, 1)
    os.dup2(told, 2)
    arguments = [SCRIPT, str(folder), str(nodes), str(per_node)]
    if launcher:
        run.main([a.format(**os.environ) for a in launcher] + arguments)
    else:
        run.run_script_path(*arguments)


def start(folder, nodes, per_node, launcher=(), environments=({},)):
    """The exit codes, one for each of the environments."""
    work = partial(launched, folder, nodes, per_node, launcher, [k for e in environments for k in e])
    return exit_codes(work, environments)


def torchrun(*rendezvous, nodes=1, per_node=1):
    # Forked, as the agent has imported all that the ranks would.
    size = [f"--nnodes={nodes}", f"--nproc-per-node={per_node}"]
    return [*size, *rendezvous, "--run-path", "--start-method=fork"]


def torchrun_on_one_node(folder):
    launcher = torchrun("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", per_node=2)
    return start(folder, 1, 2, launcher)


def torchrun_on_two_nodes(folder):
    meeting = ["--master-addr=127.0.0.1", f"--master-port={find_free_network_port()}"]
    launcher = torchrun(*meeting, "--node-rank={THIS_NODE}", nodes=2)
    return start(folder, 2, 1, launcher, [{"THIS_NODE": node} for node in "01"])


def free_job_id():
    """Lightning listens at 15000 and the last four digits of the job's number."""
    for job in range(4321, 10000):
        with socket.socket() as s:
            if s.connect_ex(("127.0.0.1", 15000 + job)) != 0:
                return str(job)
    raise RuntimeError("no free port from 19321 to 24999")


def srun(folder):
    """Two tasks with what ``srun --nodes=1 --ntasks-per-node=2`` sets for them."""
    job = {"JOB_ID": free_job_id(), "JOB_NAME": "train", "STEP_ID": "0", "NODELIST": "127.0.0.1", "NNODES": "1"}
    job |= {"JOB_NODELIST": "127.0.0.1", "JOB_NUM_NODES": "1", "NTASKS": "2", "NPROCS": "2", "NTASKS_PER_NODE": "2"}
    job |= {"TASKS_PER_NODE": "2", "NODEID": "0"}
    tasks = [{**job, "PROCID": rank, "LOCALID": rank} for rank in "01"]
    return start(folder, 1, 2, environments=[{f"SLURM_{k}": v for k, v in task.items()} for task in tasks])


LAUNCHES = {
    torchrun_on_one_node: ("TorchElasticEnvironment", [0, 0]),
    torchrun_on_two_nodes: ("TorchElasticEnvironment", [0, 1]),
    srun: ("SLURMEnvironment", [0, 0]),
}


def finished(launch, folder):
    """What each of the two ranks wrote when all is done."""
    folder.mkdir()
    codes = launch(folder)
    if set(codes) != {0}:
        pytest.fail(f"{launch.__name__} ended with {codes}:\n{(folder / 'told.txt').read_text()}")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_every_launcher_gives_the_same_run_on_every_rank(tmp_path):
    runs = []
    for launch, (environment, nodes) in LAUNCHES.items():
        folder = tmp_path / launch.__name__
        ranks = finished(launch, folder)
        assert [r.pop("node_rank") for r in ranks] == nodes
        assert [r.pop("environment") for r in ranks] == [environment] * 2
        runs += ranks
    report = read_json(tmp_path / torchrun_on_two_nodes.__name__ / "deploy" / "report.json")
    assert [[r.outcome, r.accuracy] for r in report.steps] == [[s[0], s[3]] for s in runs[0]["steps"]]
    assert report.pruned.params == runs[0]["parameters"]
    assert runs[0]["world_size"] == 2
    assert [s[0] for s in runs[0]["steps"]] == ["kept", "kept"]
    assert runs[1:] == runs[:1] * 5
