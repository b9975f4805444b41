"""Layouts of codes in memory and on disk, and the one derivation from stored tensors to codes."""
