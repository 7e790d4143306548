"""`python -m stepwell` is the `stepwell` program."""

from stepwell.commands.interrupted import loading

with loading():
    from stepwell.commands.cli import main

main()
