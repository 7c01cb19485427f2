"""Families of networks: what there is to know of each to recognise, read, build and write its weights."""
