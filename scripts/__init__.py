"""Scripts with DomainBed's names and flags, as `python -m domainbed.scripts.NAME` too."""
