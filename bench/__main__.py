"""Runs the command line as ``python -P -m bench``."""

from bench.cli import main

if __name__ == "__main__":
    main()
