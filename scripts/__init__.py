"""Scripts for people who work on Stepwell."""
