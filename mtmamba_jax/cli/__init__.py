"""The command line: one module for each command, with `run(options) -> exit code`.

`main.py` imports the command that runs; `flags.py` declares all flags.
"""
