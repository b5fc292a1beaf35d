"""The `cm3` command."""
