"""No test finds state that another test left behind, in any order."""

import atexit
import os
import shutil
import sys
import weakref
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

TESTS = """
import logging, os, random
import accelerate, numpy, pytest, torch
import matplotlib as mpl
from matplotlib import pyplot

STATE = {
    "directory": os.getcwd,
    "environment": lambda: {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
    "logging": lambda: (logging.root.level, logging.root.manager.disable, tuple(logging.root.handlers)),
    "draws": lambda: (torch.rand(1).item(), numpy.random.rand(), random.random()),
    "threads": torch.get_num_threads,
    "dtype": torch.get_default_dtype,
    "device": torch.get_default_device,
    "precision": torch.get_float32_matmul_precision,
    "deterministic": torch.are_deterministic_algorithms_enabled,
    "gradients": torch.is_grad_enabled,
    "autocast": lambda: (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")),
    "accelerate": lambda: accelerate.Accelerator(cpu=True).mixed_precision,
    "matplotlib": lambda: (mpl.rcParams["font.size"], pyplot.get_fignums()),
    "compiled": lambda: count_compilations(),
}
found, graphs = [], []


def compile_simply(graph, _):
    graphs.append(graph)
    return graph


def count_compilations():
    before = len(graphs)
    torch.compile(torch.nn.functional.relu6, backend=compile_simply)(torch.ones(1))
    return len(graphs) - before


@pytest.mark.parametrize("time", [1, 2])
def test_everything(time, tmp_path):
    found.append({name: read() for name, read in STATE.items()})
    os.chdir(tmp_path)
    os.environ["CROSSMODAL_ATTN_NEW"] = "1"
    del os.environ["MPLBACKEND"]
    logging.root.setLevel(1)
    logging.disable()
    logging.root.addHandler(logging.NullHandler())
    torch.set_num_threads(3)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    torch.use_deterministic_algorithms(True)
    torch.set_grad_enabled(False)
    torch.set_autocast_enabled("cpu", True)
    torch.set_autocast_dtype("cpu", torch.float16)
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    mpl.rcParams["font.size"] = 1
    pyplot.figure()
    torch.set_default_device("meta")
    left = {name: read() for name, read in STATE.items() if name not in ("draws", "compiled")}
    assert all(value != found[0][name] for name, value in left.items())


def test_nothing_was_left():
    assert found[0] == found[1]


def test_where_code_is_compiled_to():
    assert os.path.isdir(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    print("compiled to", os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


def work(place):
    """Run the tests in the directory. This runs in a separate process, which ends like one that was started anew."""
    sys.stdout = sys.stderr = (place / "printed").open("w")
    os.chdir(place)
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(place)
    try:
        pytest.main(["-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:xdist", "-s", "test_state.py"])
    finally:
        weakref.finalize._exitfunc()  # Python 3.13 forgets it in a process that multiprocessing starts
        atexit._run_exitfuncs()
        sys.stdout.close()


def test_every_test_begins_in_the_same_state(tmp_path, processes):
    """Compiled code goes to a temporary directory of the session, which is removed at the end."""
    (tmp_path / "test_state.py").write_text(TESTS)
    shutil.copy(ROOT / "conftest.py", tmp_path)
    process = processes.Process(target=work, args=(tmp_path,))
    process.start()
    process.join()
    printed = (tmp_path / "printed").read_text()
    assert "4 passed" in printed, printed
    (line,) = (line for line in printed.splitlines() if "compiled to" in line)
    assert not Path(line.split()[-1]).exists()
    assert Path(line.split()[-1]) != tmp_path
