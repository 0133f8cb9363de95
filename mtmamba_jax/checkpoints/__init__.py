"""Saves, resumes and loads runs in their work directories; start with `run_directory.py`."""
