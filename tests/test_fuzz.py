"""A few flipped bytes in every kind of file; ``python tests/fuzz_files.py`` flips 300 of each."""

import sys

from fuzz_files import fuzz


def work(printed):
    """Flip one byte of each kind, and print what was found. This runs in a separate process, which forks others."""
    sys.stdout = printed.open("w")
    print(fuzz(flips=1, seed=0), "faults")
    sys.stdout.close()


def test_flipped_bytes_end_in_a_result_or_one_line(tmp_path, processes):
    process = processes.Process(target=work, args=(tmp_path / "printed",))
    process.start()
    process.join()
    printed = (tmp_path / "printed").read_text()
    assert process.exitcode == 0, printed
    assert printed.splitlines()[-1] == "0 faults", printed
