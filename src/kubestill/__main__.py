"""`python -m kubestill` is `kubestill`."""

from kubestill.cli import main

if __name__ == "__main__":
    main(prog_name="kubestill")
