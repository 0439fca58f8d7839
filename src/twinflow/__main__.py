"""``python -m twinflow``, as ``torchrun`` needs it."""

from twinflow.cli import main

if __name__ == "__main__":
    main()
