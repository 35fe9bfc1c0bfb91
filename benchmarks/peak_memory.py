"""The memory that a measured process needed; the benchmarks that lie beside it import it."""

import sys


def peak_memory() -> int:
    """Return the largest memory this process has held, in bytes; 0 on Windows."""
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
