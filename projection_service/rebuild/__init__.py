"""Builds the read model anew out of the log, beside the old one."""
