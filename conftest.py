"""Tests compute with one thread: their networks are tiny, and two threads on a busy machine wait for each other."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
