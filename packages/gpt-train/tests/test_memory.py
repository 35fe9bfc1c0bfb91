import platform
import subprocess
import sys

import pytest

from gpt_train.memory import keep_freed_memory


def test_only_glibc_can_be_told_and_it_agrees():
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")


def test_freed_memory_stays_in_the_process():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("only glibc can be told")
    code = """
import ctypes, resource
from gpt_train.memory import keep_freed_memory
keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def touch():
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
touch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    touch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # else 16,384 pages each time
