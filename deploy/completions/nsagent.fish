# fish completion for nsagent: loaded at its first TAB. click's own function, from the click that nsagent runs with.
_NSAGENT_COMPLETE=fish_source nsagent | source
