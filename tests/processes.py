"""Work in processes of its own.

They are forked from a server that has only imported. A process in which torch has computed holds threads of OpenMP,
and a fork of it waits for them for ever.
"""

import multiprocessing
import os
import pickle

import torch

PRELOAD = (
    *("lightning.pytorch", "torchmetrics.classification", "torch.distributed.run", "sklearn.datasets", "onnxruntime"),
    *("hqp_lightning", "hqp_lightning.callbacks", "hqp_lightning.export", "hqp_lightning.export.onnx"),
)
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload([*PRELOAD, "settled"])


def exit_codes(work, environments=({},), timeout=240):
    """Call ``work()`` in a process for each of the environments; what it returns is lost. Waits for all of them.

    ``work`` is pickled, so that every process has tensors of its own (multiprocessing would share their memory).
    """
    content = pickle.dumps((torch.get_num_threads(), work))
    processes = [context.Process(target=_call, args=(content, variables)) for variables in environments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout)
        process.terminate()  # an agent ends its ranks
        process.join(60)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def _call(content, variables):
    os.environ.update(variables)
    threads, work = pickle.loads(content)
    torch.set_num_threads(threads)  # another number rounds differently
    work()
