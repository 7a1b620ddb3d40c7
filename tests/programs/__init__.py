"""What `make` runs beside the tests: the demo, the list of verbs, the parser."""
