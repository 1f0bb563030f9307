"""`python -m seqloom`, and `torchrun ... -m seqloom`, are the command `seqloom`."""

from seqloom.cli.main import main

if __name__ == "__main__":
    main()
