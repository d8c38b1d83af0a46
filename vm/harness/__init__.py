"""The VM harness: see vm/README.md."""
