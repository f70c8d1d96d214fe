"""`python -m batch clips --out worlds`."""

from batch.cli import entry

if __name__ == "__main__":
    entry()
