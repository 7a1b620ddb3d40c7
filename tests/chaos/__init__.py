"""Rounds in which everything that may break breaks, and a check of what is left.

Publishers send commands while workers are killed, frozen and stopped, servers are restarted, the
wires between them are cut, and others who share the broker do their worst. Then all of it is let
heal, and what was sent and answered, the log, what a subscriber received and the read model must
tell the same story.
"""
