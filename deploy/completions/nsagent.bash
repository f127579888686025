# bash completion for nsagent: loaded at its first TAB. click's own function, from the click that nsagent runs with.
eval "$(_NSAGENT_COMPLETE=bash_source nsagent)"
