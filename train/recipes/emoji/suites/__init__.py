"""What the embedded model can do: a module for each group of suites."""
