"""The docs site: built from the repository's Markdown pages, with a reference made from the code."""
