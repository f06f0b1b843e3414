"""What a step frees is there for the next one without page faults, and can be given back."""

import ctypes
import json
import sys

import pytest

from ganfast.training.host_memory import _of_libc
from tests.programs import python

PROGRAM = """
import json, resource, sys
import torch
from ganfast.training.host_memory import give_back_freed_memory, keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        # 40 MB each: always mapped by default.
        blocks = [torch.empty(10_000_000).fill_(1.0) for _ in range(2)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

torch.set_num_threads(1)
faults()
plain = faults()
keep_freed_memory()
faults()
kept, held = faults(), resident()
give_back_freed_memory()
print(json.dumps({"plain": plain, "kept": kept, "given_back": held - resident()}))
"""


@pytest.mark.skipif(_of_libc("mallopt") is None, reason="the C library is not glibc")
def test_kept_memory_is_used_again_and_given_back_when_asked():
    done = python("-c", PROGRAM, check=True)
    found = json.loads(done.stdout)
    assert found["plain"] > 1000, "every page of the blocks each time"
    assert found["kept"] < found["plain"] / 20
    assert found["given_back"] > 40e6


def test_another_c_library_is_left_alone(monkeypatch):
    class Musl:
        pass

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Musl())
    assert _of_libc("mallopt") is None
    monkeypatch.setattr(sys, "platform", "darwin")
    assert _of_libc("malloc_trim") is None
