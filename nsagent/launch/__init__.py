"""Launching a job: what was asked for (spec), what parent and child agree on (handshake), both sides, the report."""
