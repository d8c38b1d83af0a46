"""Compiles byte code beneath directories where there is none, or it is of another source.

argv: the directories, or files. One process, sorted: what it writes is the same every time.
"""
import compileall
import glob
import importlib.util
import os
import py_compile
import sys

MODE = py_compile.PycInvalidationMode.CHECKED_HASH
# PEP 552: the magic number, flags that say "by hash, checked", the hash of the source.
HEAD = importlib.util.MAGIC_NUMBER + (3).to_bytes(4, "little")


def is_current(source):
    try:
        with open(importlib.util.cache_from_source(source), "rb") as compiled:
            head = compiled.read(16)
        with open(source, "rb") as text:
            return head == HEAD + importlib.util.source_hash(text.read())
    except OSError:
        return False


def clear(source):
    """Removes what one that was killed had begun to write: importlib's _write_atomic."""
    compiled = importlib.util.cache_from_source(source)
    for left in glob.glob(glob.escape(compiled) + ".[0-9]*"):
        os.remove(left)


def compile_source(path):
    if path.endswith(".py") and not is_current(path):
        clear(path)
        # A source that does not compile is passed over, as pip does.
        compileall.compile_file(path, force=True, quiet=2, invalidation_mode=MODE)


for root in sys.argv[1:]:
    compile_source(root)
    for directory, directories, names in os.walk(root):
        directories.sort()
        for name in sorted(names):
            compile_source(os.path.join(directory, name))
