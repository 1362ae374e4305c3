"""What `docs/measured.py` writes on the pages: tables and numbers from the rows in examples/results."""
