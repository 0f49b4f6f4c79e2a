"""The `domainbed` command as `python -m domainbed`."""

from domainbed.cli import main

if __name__ == "__main__":
    main()
