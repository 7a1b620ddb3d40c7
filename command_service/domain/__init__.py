"""The rules: what a patient's history allows, decided without any I/O. Pure."""
