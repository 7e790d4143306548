"""The docs site, built once and checked as its readers get it."""
