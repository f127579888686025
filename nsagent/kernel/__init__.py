"""Everything that touches BPF. Nothing above this package knows what a map or a program is."""
