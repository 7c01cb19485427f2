"""The commands of poze."""
