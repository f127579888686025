"""Control groups: which are mounted, which there are, what they used, and making one of our own. v1, v2 and hybrid."""
