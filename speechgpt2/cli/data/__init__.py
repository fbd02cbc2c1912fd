"""The commands of `sg2 data`."""
