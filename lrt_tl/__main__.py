"""`python -m lrt_tl`, which is how torchrun starts the command line in several processes."""

from lrt_tl.cli import main

if __name__ == "__main__":
    main()
