"""`python -m sembench`."""

from sembench.commands import main

if __name__ == "__main__":
    main()
