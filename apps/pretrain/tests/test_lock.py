import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt_pretrain.errors import PretrainError
from gpt_pretrain.lock import locked

HOLD = """
import sys, time
from pathlib import Path
from gpt_pretrain.lock import locked
with locked(Path(sys.argv[1])):
    (Path(sys.argv[1]) / "work").touch()
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_second_process_is_told_who_holds_the_folder(tmp_path, holder):
    expected = f"process {holder.pid} on {socket.gethostname()}"
    with pytest.raises(PretrainError, match=expected) as caught, locked(tmp_path / "run"):
        pass
    assert caught.value.exit_code == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows ends processes otherwise")
def test_lock_of_a_killed_process_is_taken_over(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with locked(tmp_path / "run"):
        pass
    assert (tmp_path / "run" / "work").exists()


def test_of_many_at_once_exactly_one_holds_the_folder(tmp_path):
    def attempt(_):
        try:
            with locked(tmp_path / "run"):
                (tmp_path / "run" / "work").touch()
                done.wait(10)
                return 1
        except PretrainError:
            return 0

    done = threading.Event()
    for _ in range(10):
        done.clear()
        with ThreadPoolExecutor(8) as pool:
            futures = [pool.submit(attempt, k) for k in range(8)]
            while sum(future.done() for future in futures) < 7:
                time.sleep(0.001)
            done.set()
            assert sum(future.result() for future in futures) == 1


@pytest.mark.skipif(sys.platform == "win32", reason="an open file cannot be removed there")
def test_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    with locked(tmp_path / "run"):
        pass
    assert not (tmp_path / "run").exists()
