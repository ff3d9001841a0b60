#!/usr/bin/env bash
# Lightning's checkpoints are not written atomically where the temporary folder is on another file system.
#
# One would guess: Trainer.save_checkpoint (_atomic_save, "to avoid file corruption if the save gets interrupted") leaves
#   either the file that was there or the new one.
# What happens: fsspec's transaction writes into the system's temporary folder and moves the file at the end. To another
#   file system (a mounted disk, /dev/shm, a container's volume: the usual place of checkpoints) a move is a copy onto
#   the final name: a process killed then leaves half a last.ckpt, and the one before it is gone.
# Why it matters: last.ckpt is what a run is resumed from; and the temporary folder needs room for every checkpoint.
#   A save into the same folder under another name, and os.replace, are whole or not there.
#
# Needs /dev/shm on another file system than TMPDIR. Honours an active interpreter with these versions, or makes one.
# Exits with 1 if the file survives the kill.
set -euo pipefail
versions="torch==2.14.1 lightning==2.6.6 fsspec==2026.9.0"
folder=$(mktemp -d); shm=$(mktemp -d -p /dev/shm); trap 'rm -rf "$folder" "$shm"' EXIT
python=python3
if ! $python -c "import lightning; assert lightning.__version__ == '2.6.6'" 2>/dev/null; then
    python3 -m venv "$folder/venv"; python="$folder/venv/bin/python"; $python -m pip install -q $versions
fi
cat > "$folder/save.py" <<'PYTHON'
import os, sys, threading, torch
from lightning.fabric.utilities.cloud_io import _atomic_save

path = sys.argv[1]
_atomic_save({"weights": torch.zeros(30_000_000)}, path)  # 120 MB, whole
whole = os.path.getsize(path)

def kill():  # as the kernel does where memory runs out, while the second file is on its way
    while True:
        if 0 < os.path.getsize(path) < whole:
            os._exit(9)

threading.Thread(target=kill, daemon=True).start()
_atomic_save({"weights": torch.ones(30_000_000)}, path)
PYTHON
$python "$folder/save.py" "$shm/last.ckpt" 2>/dev/null && code=0 || code=$?
$python - "$shm/last.ckpt" "$code" <<'PYTHON'
import sys, fsspec, lightning, torch
try:
    torch.load(sys.argv[1])
    state = "can be read"
except Exception as error:
    state = f"cannot be read: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
print(f"lightning {lightning.__version__}, fsspec {fsspec.__version__}: exit status {sys.argv[2]}, last.ckpt {state}")
raise SystemExit(0 if sys.argv[2] == "9" and state.startswith("cannot") else 1)
PYTHON
