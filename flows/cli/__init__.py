"""The command line: `llm-fuse`. Each command is a few lines over a flow or a reading of the store."""

from flows.cli.app import main

__all__ = ["main"]
