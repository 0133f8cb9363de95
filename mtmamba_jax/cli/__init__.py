"""The commands of the command line, a module each with `run(options) -> exit code`.

`cli.py` imports the one that runs; its flags are in `arguments.py`.
"""
