"""What acts: runs, calls, threads, cancellation and the journal. What to do is decided in ``weft.core``."""
