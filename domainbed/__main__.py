"""`python -m domainbed`: the `domainbed` command."""

from domainbed.cli import main

main()
