"""`nsagent tour`: what a container is made of, shown on the reader's own machine, with each claim asserted.

An experiment (nsagent.tour.experiments, .limits) is a function that does something on a `Stage`, looks at both sides and claims
what it saw. What it says is in nsagent.tour.texts, a module a language; who shows it is a `Show`. Commands are run as they
are shown, in a registry of the tour's own.
"""
