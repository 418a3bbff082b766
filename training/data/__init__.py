"""Labelled images, networks of the literature, and workloads that join them."""
