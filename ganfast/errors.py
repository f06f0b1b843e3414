"""The two ways a command can fail. The command line prints either as one sentence."""

import errno
import re
from pathlib import Path

# Errors that a person can mend: no space or quota, no permission, a file in a folder's place.
_MENDABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}

# How the allocators of torch, oneDNN, C++ and CUDA's libraries word a RuntimeError.
_MEMORY = re.compile(
    "DefaultCPUAllocator|[A-Z] out of memory|CUDA error: out of memory|ALLOC_FAILED|std::bad_alloc|"
    "could not create a memory|could not create a primitive(?! descriptor)"
)


# What to do with a zip or a model.onnx that stands in a directory's place.
ONE_FILE = "give the directory that it is of; a zip has to be unpacked first"


class InputError(ValueError):
    """The user's input cannot be used; exit code 2.

    The message says what the value is, what was expected and what to do.
    """


class RunError(RuntimeError):
    """Something failed while running that is not the user's input; exit code 1."""


def is_mendable(error: OSError) -> bool:
    """Whether a file operation failed for want of space or permission, or of a place."""
    return error.errno in _MENDABLE


def cannot_write(what: Path | str, error: OSError, way_out: str) -> InputError | RunError:
    """The error to raise where a file could not be written: InputError if a person can mend it."""
    kind = InputError if is_mendable(error) else RunError
    return kind(f"{what} cannot be written: {error.strerror or error}; {way_out}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and bool(_MEMORY.search(str(error)))
    )
